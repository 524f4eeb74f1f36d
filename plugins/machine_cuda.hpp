#pragma once

#include "plan.hpp"

namespace bnfold::plugin {

// The kernel of a launch, as the CUDA runtime knows it; defined in kernels.cu.
template <Kernel K, Type T>
const void* code(const Launch& launch);

}  // namespace bnfold::plugin
