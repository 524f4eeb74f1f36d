// Which kernel, on which grid: the table of bnfold/kernels/launch.py for those who cannot ask Python, but for its
// rings. The same names, the same order; a test compares the two field by field, and that file explains what is
// decided here.

#pragma once

#include <optional>

namespace bnfold::plugin {

enum class Kernel { forward, apply };
enum class Type { float32, float16, bfloat16 };
enum class Layout { plane, planes, columns };
enum class Exchange { none, cluster, grid };

constexpr int size_of(Type type) { return type == Type::float32 ? 4 : 2; }

struct Device {
    int multiprocessors;
    long long shared_memory;  // bytes that one block may have, after opting in
    int clusters;             // the largest portable one, 1 where there are none
    bool cooperative;
    // How many clusters of 2, 4 and 8 blocks run at one time; -1: not told, so as many as the multiprocessors make.
    int at_once[3] = {-1, -1, -1};
};

constexpr int kClusterSizes[] = {2, 4, 8};

// One call of a kernel on an array [outer][channels][inner]; all its types are the same.
struct Problem {
    Kernel kernel;
    Type type;
    long long outer, channels, inner;
    bool aligned;  // all tensors of activations start at a multiple of 16 bytes
};

struct Launch {
    const char* row;  // of the table
    Layout layout;
    Exchange exchange;
    int width;
    int grid, block, cluster;
    bool cooperative;
    long long shared;
    int group, ranks, window, units;
};

// Channels of a unit at most.
constexpr int kMostGroup = 64;

// The launch of a problem on a device, or nothing where the array is empty or no kernel reads it.
std::optional<Launch> plan(const Problem& problem, const Device& device);

}  // namespace bnfold::plugin
