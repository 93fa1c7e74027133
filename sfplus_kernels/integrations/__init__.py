"""The optimizers in other people's training loops: ``follow``, and one thin adapter per library.

An adapter imports its library where it is used, so importing one of these modules needs nothing but torch.
"""
