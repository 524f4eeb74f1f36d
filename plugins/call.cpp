#include "call.hpp"

#include "machine.hpp"

#include <algorithm>
#include <cstdint>
#include <numeric>

namespace bnfold::plugin {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

// The formats in which the channel, axis 1, comes last in memory: the size of their vectors of channels, and the
// rank at which axis 1 is the one that they move.
struct ChannelsLast {
    TensorFormat format;
    int rank, type_bytes, lanes;
};
constexpr ChannelsLast kChannelsLast[] = {
    {TensorFormat::kHWC, 4, 4, 1},
    {TensorFormat::kDHWC, 5, 4, 1},
    {TensorFormat::kHWC8, 4, 2, 8},
    {TensorFormat::kDHWC8, 5, 2, 8},
};

const ChannelsLast* channels_last(TensorFormat format) {
    const auto found = std::find_if(std::begin(kChannelsLast), std::end(kChannelsLast),
                                    [&](const ChannelsLast& each) { return each.format == format; });
    return found == std::end(kChannelsLast) ? nullptr : found;
}

Type type_of(DataType type) {
    return type == DataType::kFLOAT ? Type::float32 : type == DataType::kHALF ? Type::float16 : Type::bfloat16;
}

long long rounded_up(long long count, long long to) { return (count + to - 1) / to * to; }

long long product(const Dims& shape, int first) {
    return std::accumulate(shape.d + first, shape.d + shape.nbDims, 1ll,
                           [](long long a, int64_t b) { return a * b; });
}

// An array [outer][channels][inner], as work.cuh reads x, residual and y.
struct Array {
    long long outer, channels, inner;
};

// What becomes of scale and shift: sets * padded values, of which `channels` of each set are given.
struct Parameters {
    long long sets, channels, padded;

    Parameters(const Dims& x, TensorFormat format, const Dims& scale, const Dims& shift)
        : sets(std::max(scale.d[0], shift.d[0])), channels(x.d[1]), padded(channels) {
        if (const auto* last = channels_last(format)) padded = rounded_up(channels, last->lanes);
    }

    long long count() const { return sets * padded; }
    bool in_place(const Dims& given) const { return padded == channels && given.d[0] == sets; }
};

Array array_of(const Dims& x, TensorFormat format, const Parameters& parameters) {
    if (channels_last(format)) return {x.d[0] * product(x, 2), parameters.padded, 1};
    // With a set for each sample, each channel of a sample is one of its own.
    if (parameters.sets > 1) return {1, parameters.count(), product(x, 2)};
    return {x.d[0], x.d[1], product(x, 2)};
}

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

// Scale or shift where the kernels can read it: in place, or filled up in the workspace. Padding gets 0, so that
// what TensorRT keeps in the padding of x, if it is finite, becomes nothing that is not.
std::string bring(const void*& values, const Dims& given, const Parameters& parameters, int size, char* space,
                  cudaStream_t stream) {
    if (parameters.in_place(given)) return {};
    const auto* const from = static_cast<const char*>(values);
    std::string wrong;
    if (parameters.padded != parameters.channels) wrong = machine::zero(space, parameters.count() * size, stream);
    for (long long set = 0; set < parameters.sets && wrong.empty(); ++set) {
        const long long source = given.d[0] == 1 ? 0 : set;
        wrong = machine::copy(space + set * parameters.padded * size, from + source * parameters.channels * size,
                              parameters.channels * size, stream);
    }
    values = space;
    return wrong;
}

// What both kernels are called with, but for the launch.
struct Call {
    const Op& op;
    const float epsilon;
    const Type type;
    const Array array;
    const void *x, *residual;
    void* y;
    const void *scale, *shift;
    char* space;
    const Workspace& at;
    const cudaStream_t stream;

    std::string forward(const Launch& launch) const;
    std::string apply(const Launch& launch) const;
};

template <class... A>
std::string launched(Kernel kernel, Type type, const Launch& launch, cudaStream_t stream, const A&... arguments) {
    const Argument all[] = {arguments...};
    return machine::launch(kernel, type, launch, all, sizeof...(A), stream);
}

constexpr void* kNothing = nullptr;

std::string Call::forward(const Launch& launch) const {
    void* const words = space + at.words;
    if (launch.cooperative) {
        if (std::string wrong = machine::zero(words, Workspace::words_bytes(), stream); !wrong.empty()) return wrong;
    }
    void *const mean = space + at.mean, *const invstd = space + at.invstd, *const letters = space + at.letters;
    const int channels = static_cast<int>(array.channels), inner = static_cast<int>(array.inner);
    const int relu = op.relu;
    const float momentum = 0;  // there are no running statistics
    return launched(Kernel::forward, type, launch, stream, x, residual, y, kNothing, scale, shift, mean, invstd,
                    kNothing, kNothing, kNothing, letters, words, array.outer, channels, inner, launch.group,
                    launch.ranks, launch.window, epsilon, momentum, relu);
}

std::string Call::apply(const Launch& launch) const {
    const int channels = static_cast<int>(array.channels), inner = static_cast<int>(array.inner);
    const int relu = op.relu;
    return launched(Kernel::apply, type, launch, stream, x, residual, y, kNothing, scale, shift, kNothing, kNothing,
                    array.outer, channels, inner, launch.group, launch.ranks, launch.window, epsilon, relu);
}

}  // namespace

bool readable(DataType type, TensorFormat format, int rank, long long channels, float epsilon) {
    if (format == TensorFormat::kLINEAR) return true;
    const auto* const last = channels_last(format);
    if (!last || last->rank != rank || last->type_bytes != size_of(type_of(type)) || channels < 0) return false;
    // Channels that are padding have no variance: without epsilon they would be divided by zero.
    return channels % last->lanes == 0 || epsilon > 0;
}

Workspace workspace_of(const Op& op, const nvinfer1::DynamicPluginTensorDesc* inputs) {
    const auto& x = inputs[0];
    const Parameters most(x.max, x.desc.format, inputs[1].max, inputs[2].max);
    const int64_t sets[] = {inputs[1].desc.dims.d[0], inputs[2].desc.dims.d[0]};
    const bool copied = most.padded != most.channels || sets[0] < 0 || sets[0] != sets[1];
    return Workspace(op.statistics ? most.padded : 0, copied ? most.count() * size_of(type_of(x.desc.type)) : 0);
}

std::string run(const Op& op, float epsilon, const PluginTensorDesc* descs, const void* const* inputs, void* y,
                void* workspace, cudaStream_t stream) {
    const Dims& shape = descs[0].dims;
    if (product(shape, 0) == 0) return {};
    const Type type = type_of(descs[0].type);
    const Parameters parameters(shape, descs[0].format, descs[1].dims, descs[2].dims);
    const Array array = array_of(shape, descs[0].format, parameters);
    const bool in_place = parameters.in_place(descs[1].dims) && parameters.in_place(descs[2].dims);
    const Workspace at(op.statistics ? array.channels : 0, in_place ? 0 : parameters.count() * size_of(type));
    auto* const space = static_cast<char*>(workspace);
    const void* const residual = op.residual ? inputs[3] : nullptr;

    const void* brought[] = {inputs[1], inputs[2]};
    for (int i = 0; i < 2; ++i) {
        std::string wrong = bring(brought[i], descs[1 + i].dims, parameters, size_of(type),
                                  space + at.parameters[i], stream);
        if (!wrong.empty()) return wrong;
    }

    Device device{};
    if (std::string wrong = machine::limits(device); !wrong.empty()) return wrong;
    device.multiprocessors = std::min(device.multiprocessors, kMostResident);
    const bool vectors = aligned(inputs[0]) && aligned(residual) && aligned(y);
    const Kernel kernel = op.statistics ? Kernel::forward : Kernel::apply;
    const Problem problem{kernel, type, array.outer, array.channels, array.inner, vectors};
    const Call call{op, epsilon, type, array, inputs[0], residual, y, brought[0], brought[1], space, at, stream};
    for (bool less = false;;) {
        const auto launch = plan(problem, device);
        if (!launch) return "no kernel reads an array of this size";
        const std::string wrong = op.statistics ? call.forward(*launch) : call.apply(*launch);
        if (wrong.empty()) {
            if (less) machine::refused(device);
            return {};
        }
        // Where a part of the device is given to somebody else, clusters or the whole grid may find no room.
        less = true;
        if (launch->cluster > 1) {
            device.clusters = 1;
        } else if (launch->cooperative) {
            device.cooperative = false;
        } else {
            return wrong;
        }
    }
}

}  // namespace bnfold::plugin
