"""What is measured: tensors of models, and the bytes that a step has to move."""
