// One vector of activations, normalized; and its gradient. Forward and backward share the expression whose sign
// the ReLU takes, so that both see the same side of it.

#pragma once

#include "work.cuh"

namespace bnfold {

// y = (x - mean) * scale + bias: the mean is taken off first, which keeps the digits of x where it is large.
struct Affine {
    float mean, scale, bias;

    BNFOLD_DEVICE float operator()(float x) const { return (x - mean) * scale + bias; }
};

// Calls f(j, item) for the V values of a vector with the item of each one's channel.
template <int V, Layout L, class Item>
struct Items {
    const Item* shared;      // of all channels of the unit
    const Item* own;         // those of this thread's vectors, in registers; not for `planes`
    const Divider by_inner;
    const unsigned offset, inner;

    template <class F>
    BNFOLD_DEVICE void each(F f) const {
        if constexpr (L == Layout::planes) {
            unsigned c = by_inner.quotient(offset), end = (c + 1) * inner;
            Item item = shared[c];
#pragma unroll
            for (int j = 0; j < V; ++j) {
                if (offset + j == end) {
                    item = shared[++c];
                    end += inner;
                }
                f(j, item);
            }
        } else {
#pragma unroll
            for (int j = 0; j < V; ++j) f(j, own[L == Layout::columns ? j : 0]);
        }
    }
};

// The items of the channels of a unit, as a thread needs them.
template <int V, Layout L, class Item = Affine>
struct Channels {
    static constexpr int A = L == Layout::columns ? V : 1;
    const Item* shared;
    const Divider by_inner;
    const unsigned inner;
    Item own[A];

    BNFOLD_DEVICE Channels(const Part<V, L>& part, const Item* items)
        : shared(items), by_inner(part.by_inner), inner(static_cast<unsigned>(part.shape.inner)) {
        if constexpr (L != Layout::planes) {
#pragma unroll
            for (int i = 0; i < A; ++i) {
                const int c = L == Layout::columns ? port::thread() % static_cast<int>(part.row) * A + i : 0;
                own[i] = items[c < part.width ? c : 0];
            }
        }
    }
    BNFOLD_DEVICE Items<V, L, Item> at(unsigned offset) const { return {shared, own, by_inner, offset, inner}; }
};

// NaN stays NaN, as in torch.
BNFOLD_DEVICE float rectified(float value) { return value <= 0 ? 0 : value; }

// Writes y of a window and, where there is a residual and a ReLU, which values passed it: bit j of mask[place / V].
// source(slot, place) gives x; U of them are under way at one time.
template <int U, class T, int V, Layout L, class Source>
BNFOLD_DEVICE void normalize(const Window<V, L>& window, Source source, const Channels<V, L>& affines,
                             const T* residual, T* y, unsigned char* mask, bool relu) {
    struct Loaded {
        Vector<T, V> x, added;
    };
    window.template each_vector<U>(
        [&](int slot, long long place) -> Loaded {
            const Vector<T, V> x = source(slot, place);
            return {x, residual ? load<T, V>(residual + place) : Vector<T, V>{}};
        },
        [&](int, long long place, unsigned offset, const Loaded& loaded) {
            Vector<T, V> out;
            unsigned passed = 0;
            affines.at(offset).each([&](int j, const Affine& affine) {
                float value = affine(to_float(loaded.x.values[j]));
                if (residual) value += to_float(loaded.added.values[j]);
                out.values[j] = from_float<T>(relu ? rectified(value) : value);
                passed |= (to_float(out.values[j]) <= 0 ? 0u : 1u) << j;
            });
            store<T, V>(y + place, out);
            if (mask) mask[place / V] = static_cast<unsigned char>(passed);
        });
}

}  // namespace bnfold
