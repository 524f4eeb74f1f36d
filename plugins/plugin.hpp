// One node of any of the eight ops. It keeps nothing but what the node says: whatever a call needs lies in the
// workspace and on the stream that it is given, so that contexts and streams do not meet.

#pragma once

#include "ops.hpp"

#include <NvInferRuntime.h>

#include <string>

namespace bnfold::plugin {

using nvinfer1::AsciiChar;
using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
public:
    // epsilon: of the ops with statistics. node: its name, for messages.
    Plugin(const Op& op, float epsilon, std::string node);
    Plugin(const Plugin&);

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    const AsciiChar* getPluginName() const noexcept override;
    const AsciiChar* getPluginVersion() const noexcept override;
    const AsciiChar* getPluginNamespace() const noexcept override;

    int32_t getNbOutputs() const noexcept override;
    int32_t getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                               int32_t input_count) const noexcept override;
    int32_t getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs* shapes,
                            int32_t shape_count, DimsExprs* outputs, int32_t output_count,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t place, const DynamicPluginTensorDesc* all, int32_t input_count,
                                   int32_t output_count) noexcept override;
    int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                            const DynamicPluginTensorDesc* outputs, int32_t output_count) noexcept override;
    size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                            const DynamicPluginTensorDesc* outputs, int32_t output_count) const noexcept override;
    const char* getTimingCacheID() noexcept override;
    const char* getMetadataString() noexcept override;

    int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc* outputs,
                          int32_t output_count) noexcept override;
    int32_t enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc* output_descs,
                    const void* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

private:
    // Logs what `work` finds wrong; gives TensorRT's status.
    template <class Work>
    int32_t status(Work work) const noexcept;

    const Op& op_;
    const float epsilon_;
    const std::string node_, identity_;
    nvinfer1::PluginField field_;
    nvinfer1::PluginFieldCollection fields_;
};

}  // namespace bnfold::plugin
