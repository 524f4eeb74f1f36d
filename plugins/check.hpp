// What the ops ask of their inputs. Each function gives an empty text, or what is wrong and what is needed.

#pragma once

#include "ops.hpp"

#include <NvInferRuntime.h>

#include <string>

namespace bnfold::plugin {

std::string wrong_count(const Op& op, int inputs);

std::string wrong_types(const Op& op, const nvinfer1::DataType* types);

// Dimensions of -1 are not known yet: nothing is said of them.
std::string wrong_shapes(const Op& op, const nvinfer1::Dims* shapes);

std::string wrong_epsilon(float epsilon);

}  // namespace bnfold::plugin
