// The instances of the kernels that the plugin launches, by what `plan` found. Compiled for GPUs by kernels.cu, and
// for the CPU by the tests; a test compares them with those that launch.py lists.

#pragma once

#include "apply.cuh"
#include "forward.cuh"
#include "plan.hpp"

namespace bnfold::plugin {

static_assert(kMostGroup == kMostChannels);

template <Type>
struct Values;
template <>
struct Values<Type::float32> {
    using type = float;
};
template <>
struct Values<Type::float16> {
    using type = half;
};
template <>
struct Values<Type::bfloat16> {
    using type = bfloat16;
};

// Calls use.of<V, L>() with the vector and the layout of a launch.
template <class T, class Use>
auto with_reading(const Launch& launch, Use use) {
    using bnfold::Layout;
    constexpr int V = 16 / sizeof(T);
    const bool columns = launch.layout == plugin::Layout::columns;
    if (launch.width == 1) {
        return columns ? use.template of<1, Layout::columns>() : use.template of<1, Layout::plane>();
    }
    if (columns) return use.template of<V, Layout::columns>();
    return launch.layout == plugin::Layout::plane ? use.template of<V, Layout::plane>()
                                                  : use.template of<V, Layout::planes>();
}

template <class T>
struct Forward {
    Exchange exchange;

    template <int V, bnfold::Layout L>
    auto of() const {
        switch (exchange) {
            case Exchange::cluster: return &forward<T, T, V, L, bnfold::Exchange::cluster>;
            case Exchange::grid: return &forward<T, T, V, L, bnfold::Exchange::grid>;
            default: return &forward<T, T, V, L, bnfold::Exchange::none>;
        }
    }
};

template <class T>
struct Apply {
    template <int V, bnfold::Layout L>
    auto of() const {
        return &apply<T, T, T, V, L>;
    }
};

template <Kernel K, class T>
auto instance(const Launch& launch) {
    if constexpr (K == Kernel::forward) {
        return with_reading<T>(launch, Forward<T>{launch.exchange});
    } else {
        return with_reading<T>(launch, Apply<T>{});
    }
}

}  // namespace bnfold::plugin
