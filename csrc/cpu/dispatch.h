// Which instruction set the element loops use.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace sfplus {

// Names of the sets that were compiled and that this processor has, the widest first.
std::vector<std::string> available_isas();

// The set in use: the widest one, or the one that the environment variable SFPLUS_CPU_ISA names, read
// once. Throws std::invalid_argument, naming the sets, if that one cannot be had.
const std::string& isa();
const Kernels& kernels();
const Kernels16bit& kernels_16bit();
const Kernels8bit& kernels_8bit();
const KernelsOfDrift& kernels_of_drift();

// Take another set from now on (for tests). Throws as isa().
void set_isa(const std::string& name);

}  // namespace sfplus
