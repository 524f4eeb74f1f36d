#include "plugin.hpp"

#include "call.hpp"
#include "check.hpp"
#include "log.hpp"

#include <exception>
#include <sstream>
#include <utility>
#include <vector>

namespace bnfold::plugin {
namespace {

using nvinfer1::PluginCapabilityType;
using nvinfer1::TensorFormat;

std::string described(const Op& op, float epsilon) {
    if (!op.statistics) return op.name;
    std::ostringstream out;
    out << op.name << " epsilon=" << std::hexfloat << epsilon;  // every bit of it
    return out.str();
}

Dims dims_of(const DimsExprs& shape) {
    Dims dims{};
    dims.nbDims = shape.nbDims;
    for (int i = 0; i < shape.nbDims; ++i) {
        dims.d[i] = shape.d[i] && shape.d[i]->isConstant() ? shape.d[i]->getConstantValue() : -1;
    }
    return dims;
}

// As `wrong_types` and `wrong_shapes`, of tensors in `get`'s view.
template <class Tensor, class Get>
std::string wrong_tensors(const Op& op, const Tensor* inputs, int count, Get get) {
    if (std::string wrong = wrong_count(op, count); !wrong.empty()) return wrong;
    std::vector<DataType> types;
    std::vector<Dims> shapes;
    for (int i = 0; i < count; ++i) {
        const auto [type, dims] = get(inputs[i]);
        types.push_back(type);
        shapes.push_back(dims);
    }
    std::string wrong = wrong_types(op, types.data());
    return wrong.empty() ? wrong_shapes(op, shapes.data()) : wrong;
}

}  // namespace

Plugin::Plugin(const Op& op, float epsilon, std::string node)
    : op_(op),
      epsilon_(epsilon),
      node_(std::move(node)),
      identity_(described(op, epsilon)),
      field_("epsilon", &epsilon_, nvinfer1::PluginFieldType::kFLOAT32, 1),
      fields_{op.statistics ? 1 : 0, &field_} {}

Plugin::Plugin(const Plugin& other) : Plugin(other.op_, other.epsilon_, other.node_) {}

template <class Work>
int32_t Plugin::status(Work work) const noexcept {
    try {
        const std::string wrong = work();
        if (wrong.empty()) return 0;
        refuse(op_, node_, wrong);
    } catch (const std::exception& error) {
        refuse(op_, node_, error.what());
    }
    return 1;
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
    try {
        return new Plugin(*this);
    } catch (const std::exception& error) {
        refuse(op_, node_, error.what());
        return nullptr;
    }
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

const AsciiChar* Plugin::getPluginName() const noexcept { return op_.name; }
const AsciiChar* Plugin::getPluginVersion() const noexcept { return kVersion; }
const AsciiChar* Plugin::getPluginNamespace() const noexcept { return kDomain; }
const char* Plugin::getTimingCacheID() noexcept { return identity_.c_str(); }
const char* Plugin::getMetadataString() noexcept { return identity_.c_str(); }
const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept { return &fields_; }
int32_t Plugin::getNbOutputs() const noexcept { return 1; }

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs,
                                   int32_t input_count) const noexcept {
    return status([&] {
        std::string wrong = wrong_count(op_, input_count);
        if (wrong.empty()) wrong = wrong_types(op_, inputs);
        outputs[0] = inputs[0];
        return wrong;
    });
}

int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t,
                                DimsExprs* outputs, int32_t, nvinfer1::IExprBuilder&) noexcept {
    return status([&] {
        const std::string wrong = wrong_count(op_, input_count);
        if (!wrong.empty()) return wrong;
        std::vector<Dims> shapes;
        for (int i = 0; i < input_count; ++i) shapes.push_back(dims_of(inputs[i]));
        outputs[0] = inputs[0];
        return wrong_shapes(op_, shapes.data());
    });
}

bool Plugin::supportsFormatCombination(int32_t place, const DynamicPluginTensorDesc* all, int32_t input_count,
                                       int32_t) noexcept {
    const PluginTensorDesc &x = all[0].desc, &here = all[place].desc;
    if (place == 0) {
        const bool known = x.type == DataType::kFLOAT || x.type == DataType::kHALF || x.type == DataType::kBF16;
        const float epsilon = op_.statistics ? epsilon_ : 1;
        return known && readable(x.type, x.format, x.dims.nbDims, x.dims.d[1], epsilon);
    }
    if (here.type != x.type) return false;
    const bool parameter = place == 1 || place == 2;
    if (!parameter || place >= input_count) return here.format == x.format;
    // With channels last, samples are not apart, and share a set.
    return here.format == TensorFormat::kLINEAR && (x.format == TensorFormat::kLINEAR || here.dims.d[0] == 1);
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const DynamicPluginTensorDesc*, int32_t) noexcept {
    return status([&] {
        std::string wrong;
        for (const auto dims : {&DynamicPluginTensorDesc::min, &DynamicPluginTensorDesc::opt,
                                &DynamicPluginTensorDesc::max}) {
            if (!wrong.empty()) break;
            wrong = wrong_tensors(op_, inputs, input_count, [&](const DynamicPluginTensorDesc& each) {
                return std::pair(each.desc.type, each.*dims);
            });
        }
        return wrong;
    });
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t, const DynamicPluginTensorDesc*,
                                int32_t) const noexcept {
    return workspace_of(op_, inputs).bytes;
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc*,
                              int32_t) noexcept {
    return status([&] {
        return wrong_tensors(op_, inputs, input_count,
                             [](const PluginTensorDesc& each) { return std::pair(each.type, each.dims); });
    });
}

int32_t Plugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*, const void* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    return status([&] { return run(op_, epsilon_, input_descs, inputs, outputs[0], workspace, stream); });
}

}  // namespace bnfold::plugin
