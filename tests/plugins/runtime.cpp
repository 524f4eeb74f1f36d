// A CUDA runtime that answers and counts, behind machine_cuda.cpp, which so says what it makes of a device.

#include "machine.hpp"
#include "machine_cuda.hpp"

namespace {

struct {
    int device = 0, clusters = 1, cooperative = 1, architecture = 90, fits[3] = {66, 33, 14};
    cudaError_t counted = cudaSuccess, launched = cudaSuccess;
} set;
int asked;  // for attributes of a device
std::string told;

}  // namespace

namespace bnfold::plugin {

template <Kernel K, Type T>
const void* code(const Launch& launch) {
    return &launch;
}
template const void* code<Kernel::forward, Type::float32>(const Launch&);
template const void* code<Kernel::forward, Type::float16>(const Launch&);
template const void* code<Kernel::forward, Type::bfloat16>(const Launch&);
template const void* code<Kernel::apply, Type::float32>(const Launch&);
template const void* code<Kernel::apply, Type::float16>(const Launch&);
template const void* code<Kernel::apply, Type::bfloat16>(const Launch&);

}  // namespace bnfold::plugin

extern "C" {

cudaError_t cudaGetDevice(int* device) {
    *device = set.device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 2;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    ++asked;
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
        case cudaDevAttrClusterLaunch: *value = set.clusters; break;
        case cudaDevAttrCooperativeLaunch: *value = set.cooperative; break;
        default: return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    *attributes = {};
    attributes->ptxVersion = set.architecture;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveClusters(int* count, const void*, const cudaLaunchConfig_t* config) {
    const unsigned size = config->attrs[0].val.clusterDim.x;
    if (config->dynamicSmemBytes != 232448 || config->gridDim.x % size) return cudaErrorInvalidValue;
    *count = set.fits[size == 2 ? 0 : size == 4 ? 1 : 2];
    return set.counted;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) { return set.launched; }
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void*, const void*, size_t, cudaMemcpyKind, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "no"; }
const char* cudaGetErrorName(cudaError_t) { return "cudaErrorNo"; }

#define OPEN __attribute__((visibility("default")))

// What the device is from now on. counted: whether the runtime tells how many clusters fit.
OPEN void runtime_set(int device, int clusters, int cooperative, int architecture, int counted) {
    set.device = device;
    set.clusters = clusters;
    set.cooperative = cooperative;
    set.architecture = architecture;
    set.counted = counted ? cudaSuccess : cudaErrorUnknown;
}
// Of the current device: multiprocessors, shared memory, clusters, cooperative, and clusters at one time, or an error.
OPEN const char* runtime_limits() {
    bnfold::plugin::Device device{};
    told = bnfold::plugin::machine::limits(device);
    if (!told.empty()) return told.c_str();
    for (const long long each : {1ll * device.multiprocessors, device.shared_memory, 1ll * device.clusters,
                                 1ll * device.cooperative, 1ll * device.at_once[0], 1ll * device.at_once[1],
                                 1ll * device.at_once[2]}) {
        told += std::to_string(each) + ' ';
    }
    return told.c_str();
}
OPEN void runtime_refused(int clusters, int cooperative) {
    bnfold::plugin::Device device{};
    device.clusters = clusters;
    device.cooperative = cooperative != 0;
    bnfold::plugin::machine::refused(device);
}
// How often a device was asked for what it is.
OPEN int runtime_asked() { return asked; }

}  // extern "C"
