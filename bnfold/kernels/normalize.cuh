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
            const int c = L == Layout::columns ? (port::thread() & static_cast<int>(part.row - 1)) * A : 0;
            const Item* const first = items + (c < part.width ? c : 0);   // a whole vector is there, or nothing of it
#pragma unroll
            for (int i = 0; i < A; ++i) own[i] = first[i];
        }
    }
    BNFOLD_DEVICE Items<V, L, Item> at(unsigned offset) const { return {shared, own, by_inner, offset, inner}; }
};

// The map of each value's channel.
template <class T, int V, class Affines>
BNFOLD_DEVICE Floats<V> mapped(const Vector<T, V>& x, const Affines& affines) {
    Floats<V> floats = floats_of(x);
    affines.each([&](int j, const Affine& affine) { floats.values[j] = affine(floats.values[j]); });
    return floats;
}

// What a vector of y is made of, behind the ReLU if there is one.
template <bool Relu, class T, int V>
BNFOLD_DEVICE Vector<T, V> finished(Floats<V> floats) {
    if constexpr (Relu) {
#pragma unroll
        for (int j = 0; j < V; ++j) floats.values[j] = port::rectified(floats.values[j]);
    }
    return vector_of<T>(floats);
}

// One loop for each way to go on with y: what is written is known before the first vector.
template <int U, bool Relu, class T, int V, Layout L, class Source>
BNFOLD_DEVICE void put(const Window<V, L>& window, Source source, const Channels<V, L>& affines, T* y) {
    T* const to = y + window.origin;
    window.template each_vector<U>(source, [&](int, Place<L> place, unsigned offset, const Vector<T, V>& x) {
        store<T, V>(to, place, finished<Relu, T>(mapped(x, affines.at(offset))));
    });
}
template <int U, bool Relu, bool Noted, class T, int V, Layout L, class Source>
BNFOLD_DEVICE void put_sum(const Window<V, L>& window, Source source, const Channels<V, L>& affines,
                           const T* residual, T* y, unsigned char* mask) {
    struct Loaded {
        Vector<T, V> x, added;
    };
    const T* const added = residual + window.origin;
    T* const to = y + window.origin;
    unsigned char* const bits = Noted ? mask + window.origin / V : nullptr;
    window.template each_vector<U>(
        [&](int slot, Place<L> place) -> Loaded {
            return {source(slot, place), load<T, V>(added, place)};
        },
        [&](int, Place<L> place, unsigned offset, const Loaded& loaded) {
            Floats<V> sum = mapped(loaded.x, affines.at(offset));
            const Floats<V> more = floats_of(loaded.added);
#pragma unroll
            for (int j = 0; j < V; ++j) sum.values[j] += more.values[j];
            const Vector<T, V> out = finished<Relu, T>(sum);
            store<T, V>(to, place, out);
            if constexpr (Noted) bits[place] = static_cast<unsigned char>(passed(out));
        });
}

// Writes y of a window and, with a mask, for which there are both a residual and a ReLU, which values passed: bit j
// of mask[place / V]. source(slot, place) gives x; U of them are under way at one time.
template <int U, class T, int V, Layout L, class Source>
BNFOLD_DEVICE void normalize(const Window<V, L>& window, Source source, const Channels<V, L>& affines,
                             const T* residual, T* y, unsigned char* mask, bool relu) {
    if (!residual) {
        relu ? put<U, true, T>(window, source, affines, y) : put<U, false, T>(window, source, affines, y);
    } else if (mask) {
        put_sum<U, true, true, T>(window, source, affines, residual, y, mask);
    } else if (relu) {
        put_sum<U, true, false, T>(window, source, affines, residual, y, mask);
    } else {
        put_sum<U, false, false, T>(window, source, affines, residual, y, mask);
    }
}

}  // namespace bnfold
