#include "check.hpp"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace bnfold::plugin {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr int kLeastRank = 2, kMostRank = Dims::MAX_DIMS;
constexpr long long kMostPlane = 1ll << 30, kMostChannels = 1ll << 31;  // of launch.py's `reading`

std::string text(DataType type) {
    constexpr const char* names[] = {"float32", "float16", "int8", "int32", "bool", "uint8", "float8",
                                     "bfloat16", "int64", "int4", "float4"};
    const auto index = static_cast<std::size_t>(type);
    return index < std::size(names) ? names[index] : "type " + std::to_string(index);
}

std::string text(const Dims& shape) {
    std::ostringstream out;
    for (int i = 0; i < shape.nbDims; ++i) {
        out << (i ? ", " : "(");
        if (shape.d[i] < 0) {
            out << '?';
        } else {
            out << shape.d[i];
        }
    }
    out << (shape.nbDims ? ")" : "()");
    return out.str();
}

bool may_equal(long long a, long long b) { return a < 0 || b < 0 || a == b; }

// The shape of scale and shift for x, of one set or of one for each sample.
Dims parameters_of(const Dims& x, bool each_sample) {
    Dims wanted = x;
    std::fill(wanted.d + 2, wanted.d + std::max(wanted.nbDims, 2), 1);
    if (!each_sample) wanted.d[0] = 1;
    return wanted;
}

bool may_be(const Dims& shape, const Dims& wanted) {
    return shape.nbDims == wanted.nbDims && std::equal(shape.d, shape.d + shape.nbDims, wanted.d, may_equal);
}

}  // namespace

std::string wrong_count(const Op& op, int inputs) {
    if (inputs == op.inputs()) return {};
    std::string names;
    for (int i = 0; i < op.inputs(); ++i) names += std::string(i ? ", " : "") + kInputs[i];
    return std::to_string(inputs) + " inputs are given; " + std::to_string(op.inputs()) + " are needed: " + names;
}

std::string wrong_types(const Op& op, const DataType* types) {
    const auto known = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
    if (std::find(known.begin(), known.end(), types[0]) == known.end()) {
        return "x is " + text(types[0]) + "; float32, float16 or bfloat16 is needed";
    }
    for (int i = 1; i < op.inputs(); ++i) {
        if (types[i] != types[0]) {
            return std::string(kInputs[i]) + " is " + text(types[i]) + ", but x is " + text(types[0]) +
                   "; all inputs need the same type";
        }
    }
    return {};
}

std::string wrong_shapes(const Op& op, const Dims* shapes) {
    const Dims& x = shapes[0];
    if (x.nbDims < kLeastRank || x.nbDims > kMostRank) {
        return "x " + text(x) + " has rank " + std::to_string(x.nbDims) + "; 2 to 8 are needed: (N, C, ...)";
    }
    for (const int i : {1, 2}) {
        const Dims one = parameters_of(x, false), each = parameters_of(x, true);
        if (may_be(shapes[i], one) || (!op.statistics && may_be(shapes[i], each))) continue;
        return std::string(kInputs[i]) + ' ' + text(shapes[i]) + " does not fit x " + text(x) + "; " + text(one) +
               (op.statistics ? "" : " or, for each sample, " + text(each)) + " is needed";
    }
    if (op.residual && !may_be(shapes[3], x)) {
        return "residual " + text(shapes[3]) + " does not fit x " + text(x) + "; the same shape is needed";
    }
    long long plane = 1;
    for (int i = 2; i < x.nbDims; ++i) plane = std::min(plane * std::max<long long>(1, x.d[i]), kMostPlane);
    const long long sets = std::max<long long>({1, shapes[1].d[0], shapes[2].d[0]});
    if (plane >= kMostPlane || sets * x.d[1] >= kMostChannels) {
        return "x " + text(x) + " is too large: planes of less than 2^30 values are needed, and less than 2^31 "
               "channels (of all samples together, where each has its own scale or shift)";
    }
    return {};
}

std::string wrong_epsilon(float epsilon) {
    if (std::isfinite(epsilon) && epsilon >= 0) return {};
    std::ostringstream out;
    out << "epsilon is " << epsilon << "; a finite number that is not negative is needed";
    return out.str();
}

}  // namespace bnfold::plugin
