#pragma once

#include "host_launch.h"
#include "plan.hpp"

namespace bnfold::plugin {

// Runs the kernel of a launch on the CPU; gives null, or what went wrong. Defined in host_kernels.cpp.
template <Kernel K, Type T>
const char* host_launch(const Launch& launch, const host::Launch& shape, const host::Argument* arguments, int count);

}  // namespace bnfold::plugin
