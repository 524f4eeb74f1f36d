// How a tensor is divided among blocks and threads.
//
// A tensor is an array [outer][channels][inner], dense and in this order: NCHW is (N, C, H*W), channels last is
// (N*H*W, C, 1). `group` neighbouring channels are a *unit*: `outer` runs of group*inner neighbouring values.
// `ranks` blocks share a unit, each taking an equal part of its vectors, in windows of as many as shared memory
// holds. Three layouts tell which channels the values of a vector belong to:
//
//   plane     one channel a unit, a whole number of vectors in each plane of `inner` values
//   planes    several channels a unit, for planes that only together are a whole number of vectors (7 x 7)
//   columns   inner == 1: a vector holds a value of each of V channels, always the same for one thread

#pragma once

#include "moments.cuh"
#include "values.cuh"

namespace bnfold {

enum class Layout { plane, planes, columns };

constexpr int kThreads = 512;      // of every block
constexpr int kMostChannels = 64;  // of a unit
constexpr int kAhead = 12;         // vectors of each thread that L2 is asked for while a block waits: 96 KB

BNFOLD_DEVICE int least(int a, int b) { return a < b ? a : b; }
// a / b, rounded up; 0 of negative numbers.
BNFOLD_DEVICE int ceiling(int a, int b) { return a > 0 ? (a + b - 1) / b : 0; }

// Division of n < 2^31 by the same d, as a multiplication (Granlund and Montgomery, 1994).
struct Divider {
    unsigned divisor, multiplier = 0, shift = 0;

    BNFOLD_DEVICE explicit Divider(unsigned d) : divisor(d) {
        unsigned bits = 0;
        while ((1ull << bits) < d) ++bits;
        if (bits == 0) return;  // by one
        multiplier = static_cast<unsigned>(((1ull << (31 + bits)) + d - 1) / d);
        shift = bits - 1;
    }
    BNFOLD_DEVICE unsigned quotient(unsigned n) const {
        return divisor == 1 ? n : port::multiply_high(n, multiplier) >> shift;
    }
};

// The shape of a tensor and its division, as the launcher chose it.
struct Shape {
    long long outer;
    int channels, inner, group, ranks, window;
};

// So many pieces in equal shares: the first ones have one more, as far as there are more.
struct Shares {
    const long long each;
    const int rest;            // pieces = ranks * each + rest
    const float fewer, more;   // the sizes that shares have

    BNFOLD_DEVICE Shares(long long pieces, int ranks)
        : each(quotient(pieces, ranks)),
          rest(static_cast<int>(pieces - each * ranks)),
          fewer(static_cast<float>(each)),
          more(static_cast<float>(each + 1)) {}
    // Of numbers that are not negative. A division of 64 bits takes long; few tensors are so large that they need it.
    BNFOLD_DEVICE static int quotient(int a, int b) {
        return static_cast<int>(static_cast<unsigned>(a) / static_cast<unsigned>(b));
    }
    BNFOLD_DEVICE static long long quotient(long long a, int b) {
        return a < 0x80000000ll ? quotient(static_cast<int>(a), b) : a / b;
    }
    BNFOLD_DEVICE long long begin(int rank) const { return each * rank + (rank < rest ? rank : rest); }
    BNFOLD_DEVICE float size(int rank) const { return rank < rest ? more : fewer; }
};

// One block's part of a unit: the same of each unit but for its channels.
template <int V, Layout L>
struct Part {
    const Shape shape;
    const unsigned row;            // vectors in a run; a power of two in `columns`
    const Divider by_row, by_inner;   // not in `columns`
    long long begin, end;          // this block's vectors, of the unit's outer * row
    int first = 0, width = 0;      // the unit's channels

    BNFOLD_DEVICE Part(const Shape& s, int rank)
        : shape(s),
          row(static_cast<unsigned>(static_cast<long long>(s.group) * s.inner / V)),
          by_row(L == Layout::columns ? 1 : row),
          by_inner(L == Layout::columns ? 1 : static_cast<unsigned>(s.inner)) {
        const Shares all = shares();
        begin = boundary(all, rank);
        end = boundary(all, rank + 1);
    }

    BNFOLD_DEVICE void turn_to(int unit) {
        first = unit * shape.group;
        width = shape.channels - first < shape.group ? shape.channels - first : shape.group;
    }

    // What is shared are rows in `columns`, so that a thread keeps its channels, and else vectors.
    BNFOLD_DEVICE Shares shares() const {
        return {L == Layout::columns ? shape.outer : shape.outer * row, shape.ranks};
    }
    BNFOLD_DEVICE long long boundary(const Shares& shares, int rank) const {
        return L == Layout::columns ? shares.begin(rank) * row : shares.begin(rank);
    }

    BNFOLD_DEVICE int windows() const {
        return static_cast<int>((end - begin + shape.window - 1) / shape.window);
    }

    // row == 1 << row_bits() in `columns`: at most the lanes of a warp.
    BNFOLD_DEVICE int row_bits() const {
        return (row > 1) + (row > 2) + (row > 4) + (row > 8) + (row > 16);
    }
    // In which run the unit's vector of that number is, and where in it.
    struct Run {
        long long number;
        unsigned offset;
    };
    BNFOLD_DEVICE Run run_of(long long vector) const {
        if constexpr (L == Layout::columns) return {vector >> row_bits(), static_cast<unsigned>(vector) & (row - 1)};
        // Few tensors are so large that a division of 64 bits, which takes long, is needed.
        const long long number = vector < 0x80000000ll ? by_row.quotient(static_cast<unsigned>(vector)) : vector / row;
        return {number, static_cast<unsigned>(vector - number * row)};
    }

    // How many of the unit's first `vectors` vectors' values belong to its channel c.
    BNFOLD_DEVICE long long values_before(long long vectors, int c) const {
        if constexpr (L == Layout::plane) return vectors * V;
        const Run run = run_of(vectors);
        if constexpr (L == Layout::columns) return run.number;
        const long long left = static_cast<long long>(run.offset) * V - static_cast<long long>(c) * shape.inner;
        const long long in_run = left < 0 ? 0 : left < shape.inner ? left : shape.inner;
        return run.number * shape.inner + in_run;
    }

    // How many values of the unit's channel c are in vectors [from, to), and how many a rank has.
    BNFOLD_DEVICE float values_of(int c, long long from, long long to) const {
        if constexpr (L == Layout::columns) return static_cast<float>((to - from) >> row_bits());  // whole rows
        return static_cast<float>(values_before(to, c) - values_before(from, c));
    }
    BNFOLD_DEVICE float values_of(int c, const Shares& shares, int rank) const {
        if constexpr (L != Layout::planes) return shares.size(rank) * (L == Layout::columns ? 1 : V);
        return values_of(c, boundary(shares, rank), boundary(shares, rank + 1));
    }

    // A value near the mean of the unit's channel c, the same in every block: the middle one of its first three.
    template <class T>
    BNFOLD_DEVICE float near(const T* x, int c) const {
        float values[3];
        const long long count = shape.outer * shape.inner;
#pragma unroll
        for (int k = 0; k < 3; ++k) {
            const unsigned at = k < count ? static_cast<unsigned>(k) : 0;
            const unsigned run = L == Layout::columns ? at : by_inner.quotient(at);
            const long long plane = static_cast<long long>(run) * shape.channels + first + c;
            values[k] = to_float(x[plane * shape.inner + (at - run * static_cast<unsigned>(shape.inner))]);
        }
        return middle(values[0], values[1], values[2]);
    }
};

template <int V, Layout L>
struct Window;

// Where the vectors of a thread are, one after the other: the number of each from the window's first run on.
template <int V, Layout L>
struct Places {
    using Place = long long;
    const Window<V, L>& window;
    const long long stride;   // from one run to the next

    BNFOLD_DEVICE explicit Places(const Window<V, L>& w)
        : window(w), stride(static_cast<long long>(w.part.shape.channels) * w.part.shape.inner / V) {}

    BNFOLD_DEVICE bool beyond() const { return false; }
    BNFOLD_DEVICE void next(int slot, Place& place, unsigned& offset) {
        const auto& part = window.part;
        const unsigned vector = window.skipped + static_cast<unsigned>(slot);
        const unsigned run = part.by_row.quotient(vector);
        place = run * stride + (vector - run * part.row);
        offset = (vector - run * part.row) * V;
    }
};

// A row divides the threads: a thread keeps its channels, and from one vector to its next it is so many rows on.
template <int V>
struct Places<V, Layout::columns> {
    using Place = unsigned;   // the launcher makes windows small enough
    Place at, step;
    unsigned in_run, width;

    BNFOLD_DEVICE explicit Places(const Window<V, Layout::columns>& window) {
        const auto& part = window.part;
        const auto run = part.run_of(port::thread());
        const unsigned stride = static_cast<unsigned>(part.shape.channels) / V;
        in_run = run.offset * V;
        width = static_cast<unsigned>(part.width);
        step = static_cast<unsigned>(kThreads >> part.row_bits()) * stride;
        at = static_cast<unsigned>(run.number) * stride + run.offset;
    }

    // Whether this thread's channels are beyond the last one.
    BNFOLD_DEVICE bool beyond() const { return in_run >= width; }
    BNFOLD_DEVICE void next(int, Place& place, unsigned& offset) {
        place = at;
        offset = in_run;
        at += step;
    }
};

template <Layout L>
using Place = typename Places<1, L>::Place;

// Neighbouring vectors of a part: those that are in shared memory at one time.
template <int V, Layout L>
struct Window {
    const Part<V, L>& part;
    const long long begin;
    const int count;
    unsigned skipped;   // vectors of the first run that lie before the window
    long long origin;   // of the first run, in values from the tensor's start

    BNFOLD_DEVICE Window(const Part<V, L>& p, int index)
        : part(p),
          begin(p.begin + static_cast<long long>(index) * p.shape.window),
          count(static_cast<int>(p.end - begin < p.shape.window ? p.end - begin : p.shape.window)) {
        const auto run = p.run_of(begin);
        skipped = L == Layout::columns ? 0 : run.offset;
        origin = (run.number * p.shape.channels + p.first) * p.shape.inner;
    }

    // Values of the unit's channel c in the window.
    BNFOLD_DEVICE float values_of(int c) const {
        if constexpr (L == Layout::columns) return static_cast<float>(count >> part.row_bits());
        return part.values_of(c, begin, begin + count);
    }

    // How many vectors of the window are this thread's.
    BNFOLD_DEVICE int vectors() const {
        const int left = Places<V, L>(*this).beyond() ? 0 : count - port::thread();
        return left <= 0 ? 0 : (left + kThreads - 1) / kThreads;
    }

    // Calls use(slot, place, offset, load(slot, place)) for each vector of this thread: its number in the window, and
    // in the tensor from `origin` on, its first value's place in its run, and what was loaded. U loads are under way at
    // one time.
    template <int U, class Load, class Use>
    BNFOLD_DEVICE void each_vector(Load load, Use use) const {
        each_vector<U>(load, [](const decltype(load(0, Place<L>{}))&) {}, use);
    }
    // And begin(loaded) before that, for the first one.
    template <int U, class Load, class Begin, class Use>
    BNFOLD_DEVICE void each_vector(Load load, Begin begin, Use use) const {
        Places<V, L> places(*this);
        int slot = port::thread();
        if (!places.beyond()) turns<U>(slot, places, load, begin, use);
    }

    // Asks L2 for a tensor's vectors in the window, of each thread the first `most`.
    template <class T>
    BNFOLD_DEVICE void prefetch(const T* x, int most) const {
        if (V == 1) return;  // too little for each
        Places<V, L> places(*this);
        if (places.beyond()) return;
        const T* const from = x + origin;
        const int last = count < most * kThreads ? count : most * kThreads;
#pragma unroll 1
        for (int slot = port::thread(); slot < last; slot += kThreads) {
            Place<L> place;
            unsigned offset;
            places.next(slot, place, offset);
            if (slot % 2 == 0) port::prefetch(from + static_cast<long long>(place) * V);  // 32 bytes: two vectors
        }
    }

private:
    // All turns of U vectors, then what is left in turns of fewer.
    template <int U, class Load, class Begin, class Use>
    BNFOLD_DEVICE void turns(int slot, Places<V, L>& places, Load load, Begin begin, Use use) const {
        const int last = count - (U - 1) * kThreads;
#pragma unroll 1
        for (; slot < last; slot += U * kThreads) {
            decltype(load(0, Place<L>{})) loaded[U];
            Place<L> place[U];
            unsigned offset[U];
#pragma unroll
            for (int u = 0; u < U; ++u) {
                places.next(slot + u * kThreads, place[u], offset[u]);
                loaded[u] = load(slot + u * kThreads, place[u]);
            }
            if (slot < kThreads) begin(loaded[0]);
#pragma unroll
            for (int u = 0; u < U; ++u) use(slot + u * kThreads, place[u], offset[u], loaded[u]);
        }
        if constexpr (U > 1) turns<U / 2>(slot, places, load, begin, use);
    }
};

// Which warps sum a channel of the layout `planes` in a window: those that are its number modulo the number of
// channels present, so that none is idle where a window holds a part of one plane only.
template <int V>
struct Sweep {
    const Window<V, Layout::planes>& window;
    int from, present;   // first channel in the window, and how many

    BNFOLD_DEVICE explicit Sweep(const Window<V, Layout::planes>& w) : window(w) {
        const auto& part = w.part;
        from = static_cast<int>(part.by_inner.quotient(w.skipped * V));
        const unsigned last = w.skipped * V + static_cast<unsigned>(w.count) * V - 1;
        const unsigned ahead = last / static_cast<unsigned>(part.shape.inner) - static_cast<unsigned>(from);
        present = ahead < static_cast<unsigned>(part.width) ? static_cast<int>(ahead) + 1 : part.width;
    }

    BNFOLD_DEVICE int warp() const { return port::thread() / 32; }
    BNFOLD_DEVICE int warps() const { return kThreads / 32; }
    // The channel that this thread's warp sums.
    BNFOLD_DEVICE int channel() const { return (from + warp() % present) % window.part.width; }
    // The first warp that sums channel c; `present` warps on comes the next. None if the window has no such.
    BNFOLD_DEVICE int first_warp(int c) const {
        const int place = (c - from + window.part.width) % window.part.width;
        return place < present ? place : warps();
    }

    // Calls f(i) for each of this thread's values of its channel: values in shared memory, from the window's start.
    template <class F>
    BNFOLD_DEVICE void each_value(F f) const {
        const auto& part = window.part;
        const unsigned run_values = part.row * V, before = window.skipped * V;
        const unsigned end = before + static_cast<unsigned>(window.count) * V;
        const unsigned runs = (end + run_values - 1) / run_values;
        const unsigned start = static_cast<unsigned>(channel()) * part.shape.inner;
        // Warps of one channel take turns: by runs, or within a run where there are few.
        const unsigned turn = static_cast<unsigned>(warp() / present);
        const unsigned turns = static_cast<unsigned>((warps() - warp() % present + present - 1) / present);
        const bool by_run = runs >= turns;
        for (unsigned run = by_run ? turn : 0; run < runs; run += by_run ? turns : 1) {
            unsigned low = run * run_values + start, high = low + part.shape.inner;
            low = low < before ? before : low;
            high = high < end ? high : end;
            const unsigned lane = static_cast<unsigned>(port::thread() % 32) + (by_run ? 0 : 32 * turn);
            for (unsigned i = low + lane; i < high; i += by_run ? 32 : 32 * turns) f(i - before);
        }
    }
};

}  // namespace bnfold
