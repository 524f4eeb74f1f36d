// What the plugin asks of the machine it runs on. machine_cuda.cpp answers for GPUs, machine_none.cpp in a library
// that was built without kernels, and in the tests a CPU on which the same kernels run.
//
// Functions that give a text give an empty one, or what went wrong. Kept is only what the devices can.

#pragma once

#include "plan.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <type_traits>

namespace bnfold::plugin {

// An argument of a kernel, by its address. kind: 'p' a pointer, 'f' a floating-point number, 'i' an integer.
struct Argument {
    const void* value;
    int size;
    char kind;

    template <class A>
    Argument(const A& argument)  // NOLINT: made where a kernel is called
        : value(&argument),
          size(sizeof(A)),
          kind(std::is_pointer_v<A> ? 'p' : std::is_floating_point_v<A> ? 'f' : 'i') {}
};

namespace machine {

// Why no kernel can be launched, as far as that is known before an engine is built.
std::string unusable();

// Of the current device.
std::string limits(Device& device);

// That the current device lets clusters, or the blocks of a grid, run together no more than `device` does: it has
// refused others, and a launch that needs less was queued. `limits` tells no more from then on.
void refused(const Device& device);

std::string zero(void* memory, std::size_t bytes, cudaStream_t stream);
std::string copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream);

// Queues a kernel on a stream of the current device.
std::string launch(Kernel kernel, Type type, const Launch& launch, const Argument* arguments, int count,
                   cudaStream_t stream);

}  // namespace machine
}  // namespace bnfold::plugin
