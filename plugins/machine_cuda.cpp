#include "machine_cuda.hpp"

#include "machine.hpp"

namespace bnfold::plugin::machine {
namespace {

constexpr int kMostArguments = 32;

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
    int clusters = 0, cooperative = 0, shared = 0;
    const struct {
        int* value;
        cudaDeviceAttr attribute;
    } asked[] = {{&device.multiprocessors, cudaDevAttrMultiProcessorCount},
                 {&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin},
                 {&clusters, cudaDevAttrClusterLaunch},
                 {&cooperative, cudaDevAttrCooperativeLaunch}};
    for (const auto& each : asked) {
        if (std::string wrong = text(ask(each.value, each.attribute)); !wrong.empty()) return wrong;
    }
    device.shared_memory = shared;
    device.clusters = clusters ? 8 : 1;
    device.cooperative = cooperative != 0;
    return {};
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
