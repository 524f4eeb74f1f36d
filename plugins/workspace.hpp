// Where things lie in the workspace of one call. It does not depend on the device: an engine may run on another.

#pragma once

#include "plan.hpp"

#include <cstddef>

namespace bnfold::plugin {

// Blocks of a cooperative launch at most: no more are planned for, however many multiprocessors there are.
constexpr int kMostResident = 192;
constexpr int kMomentsBytes = 8;

struct Workspace {
    std::size_t mean, invstd, words, letters;  // of statistics
    std::size_t parameters[2];                 // scale and shift, where they cannot be read in place
    std::size_t bytes = 0;

    // channels: of the array, for statistics or 0. copied: bytes of scale, and of shift, or 0.
    Workspace(long long channels, std::size_t copied) {
        const std::size_t count = static_cast<std::size_t>(channels);
        const std::size_t units = (count + kMostGroup - 1) / kMostGroup;
        mean = take(count * sizeof(float));
        invstd = take(count * sizeof(float));
        words = take(count ? words_bytes() : 0);
        letters = take(units * kMostGroup * kMostResident * kMomentsBytes);
        for (std::size_t& each : parameters) each = take(copied);
    }

    static constexpr std::size_t words_bytes() { return kMostResident * sizeof(unsigned); }

private:
    std::size_t take(std::size_t size) {
        const std::size_t here = bytes;
        bytes += (size + 255) / 256 * 256;
        return here;
    }
};

}  // namespace bnfold::plugin
