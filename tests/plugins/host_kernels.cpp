// The instances of one kernel for one type, as plugins/kernels.cu has them, for the CPU.

#include "host_kernels.h"

#include "instances.hpp"

namespace bnfold::plugin {

template <>
const char* host_launch<Kernel::INSTANCE_KERNEL, Type::INSTANCE_TYPE>(const Launch& launch, const host::Launch& shape,
                                                                      const host::Argument* arguments, int count) {
    using T = Values<Type::INSTANCE_TYPE>::type;
    return host::launch(instance<Kernel::INSTANCE_KERNEL, T>(launch), shape, arguments, count);
}

}  // namespace bnfold::plugin
