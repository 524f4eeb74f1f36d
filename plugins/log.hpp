// Messages to the logger of the TensorRT that loaded this library.

#pragma once

#include "ops.hpp"

#include <string>

namespace bnfold::plugin {

// An error of a node, by its name or without one; to the standard error where there is no logger.
void refuse(const Op& op, const std::string& node, const std::string& wrong) noexcept;

}  // namespace bnfold::plugin
