// One call of an op: the tensors as the kernels read them, and the launch.

#pragma once

#include "ops.hpp"
#include "workspace.hpp"

#include <NvInferRuntime.h>

#include <string>

namespace bnfold::plugin {

// Whether x may lie in memory like this. channels: -1 if they are not known yet.
bool readable(nvinfer1::DataType type, nvinfer1::TensorFormat format, int rank, long long channels, float epsilon);

// Enough for all shapes that the inputs may have.
Workspace workspace_of(const Op& op, const nvinfer1::DynamicPluginTensorDesc* inputs);

// Queues an op on a stream; gives an empty text, or what went wrong.
std::string run(const Op& op, float epsilon, const nvinfer1::PluginTensorDesc* descs, const void* const* inputs,
                void* y, void* workspace, cudaStream_t stream);

}  // namespace bnfold::plugin
