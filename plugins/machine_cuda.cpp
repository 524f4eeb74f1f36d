#include "machine_cuda.hpp"

#include "machine.hpp"

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>

namespace bnfold::plugin::machine {
namespace {

constexpr int kMostArguments = 32;
constexpr int kThreads = 512;  // of every block
constexpr int kClusters = 90;  // the architecture from which kernels have clusters (port.cuh)

std::mutex known_lock;
std::map<int, Device> known;  // by the number of a device

std::string text(cudaError_t error) {
    if (error == cudaSuccess) return {};
    cudaGetLastError();  // not left for the next call of somebody else
    std::string said = std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
    if (error == cudaErrorNoKernelImageForDevice) said += "; this library has kernels for " BNFOLD_ARCHITECTURES;
    return said;
}

const void* code_of(Kernel kernel, Type type, const Launch& launch) {
    using Code = const void* (*)(const Launch&);
    constexpr Code all[][3] = {{code<Kernel::forward, Type::float32>, code<Kernel::forward, Type::float16>,
                                code<Kernel::forward, Type::bfloat16>},
                               {code<Kernel::apply, Type::float32>, code<Kernel::apply, Type::float16>,
                                code<Kernel::apply, Type::bfloat16>}};
    return all[static_cast<int>(kernel)][static_cast<int>(type)](launch);
}

cudaError_t ask(int* value, cudaDeviceAttr attribute) {
    int device;
    const cudaError_t error = cudaGetDevice(&device);
    return error == cudaSuccess ? cudaDeviceGetAttribute(value, attribute, device) : error;
}

// A kernel of a cluster, as any other; it is asked for what the device does with clusters.
const void* of_clusters() {
    Launch launch{};
    launch.layout = Layout::plane;
    launch.exchange = Exchange::cluster;
    launch.width = 1;
    return code_of(Kernel::forward, Type::float32, launch);
}

// How many clusters of so many blocks run at one time, each block with all shared memory, as `plan` gives it.
cudaError_t count(int& clusters, const void* code, int size, int shared) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(size);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = shared;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaOccupancyMaxActiveClusters(&clusters, code, &config);
}

// What the current device can do.
cudaError_t look(Device& device) {
    int clusters = 0, cooperative = 0, shared = 0;
    const struct {
        int* value;
        cudaDeviceAttr attribute;
    } asked[] = {{&device.multiprocessors, cudaDevAttrMultiProcessorCount},
                 {&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin},
                 {&clusters, cudaDevAttrClusterLaunch},
                 {&cooperative, cudaDevAttrCooperativeLaunch}};
    for (const auto& each : asked) {
        if (const cudaError_t error = ask(each.value, each.attribute); error != cudaSuccess) return error;
    }
    device.shared_memory = shared;
    device.clusters = 1;
    device.cooperative = cooperative != 0;
    if (!clusters) return cudaSuccess;

    const void* const code = of_clusters();
    cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, code);
    if (error != cudaSuccess) return error;
    // Code that was made for an older architecture, and compiled anew for this device, has no clusters.
    if (attributes.ptxVersion < kClusters) return cudaSuccess;
    device.clusters = *(std::end(kClusterSizes) - 1);
    error = cudaFuncSetAttribute(code, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    for (int i = 0; i < 3 && error == cudaSuccess; ++i) {
        error = count(device.at_once[i], code, kClusterSizes[i], shared);
    }
    if (error != cudaSuccess) {  // without a count, the table takes it that all multiprocessors have some
        cudaGetLastError();
        std::fill(std::begin(device.at_once), std::end(device.at_once), -1);
    }
    return cudaSuccess;
}

}  // namespace

std::string unusable() {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        cudaGetLastError();
        return {};  // an engine is built for another machine
    }
    Launch launch{};
    launch.layout = Layout::plane;
    launch.width = 1;
    cudaFuncAttributes attributes;
    return text(cudaFuncGetAttributes(&attributes, code_of(Kernel::apply, Type::float32, launch)));
}

std::string limits(Device& device) {
    int current = 0;
    if (std::string wrong = text(cudaGetDevice(&current)); !wrong.empty()) return wrong;
    const std::lock_guard<std::mutex> lock(known_lock);
    const auto found = known.find(current);
    if (found == known.end()) {
        if (std::string wrong = text(look(device)); !wrong.empty()) return wrong;
        known.emplace(current, device);
    } else {
        device = found->second;
    }
    return {};
}

void refused(const Device& device) {
    int current = 0;
    if (cudaGetDevice(&current) != cudaSuccess) return;
    const std::lock_guard<std::mutex> lock(known_lock);
    Device& kept = known[current];
    kept.clusters = std::min(kept.clusters, device.clusters);
    kept.cooperative = kept.cooperative && device.cooperative;
}

std::string zero(void* memory, std::size_t bytes, cudaStream_t stream) {
    return text(cudaMemsetAsync(memory, 0, bytes, stream));
}

std::string copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    return text(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
}

std::string launch(Kernel kernel, Type type, const Launch& launch, const Argument* arguments, int count,
                   cudaStream_t stream) {
    const void* const found = code_of(kernel, type, launch);
    // Always the most, so that threads which launch the same kernel do not take it from each other.
    int most = 0;
    if (std::string wrong = text(ask(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin)); !wrong.empty()) return wrong;
    const auto allowed = cudaFuncSetAttribute(found, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (std::string wrong = text(allowed); !wrong.empty()) return wrong;

    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(launch.grid);
    config.blockDim = dim3(launch.block);
    config.dynamicSmemBytes = launch.shared;
    config.stream = stream;
    config.attrs = attributes;
    if (launch.cooperative) {
        attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
        attributes[config.numAttrs++].val.cooperative = 1;
    }
    if (launch.cluster > 1) {
        attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(launch.cluster), 1, 1};
    }
    void* values[kMostArguments];
    if (count > kMostArguments) return "too many arguments";
    for (int i = 0; i < count; ++i) values[i] = const_cast<void*>(arguments[i].value);
    return text(cudaLaunchKernelExC(&config, found, values));
}

}  // namespace bnfold::plugin::machine
