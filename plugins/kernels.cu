// The instances of one kernel for one type; compiled once for each of both, so that compilers share the work.

#include "instances.hpp"
#include "machine_cuda.hpp"

namespace bnfold::plugin {

template <>
const void* code<Kernel::INSTANCE_KERNEL, Type::INSTANCE_TYPE>(const Launch& launch) {
    using T = Values<Type::INSTANCE_TYPE>::type;
    return reinterpret_cast<const void*>(instance<Kernel::INSTANCE_KERNEL, T>(launch));
}

}  // namespace bnfold::plugin
