// Sets merged over the threads of a block, and over the blocks of a unit: always in the same order, without atomics
// on numbers, so that a result repeats bit by bit.

#pragma once

#include "moments.cuh"
#include "work.cuh"

namespace bnfold {

constexpr int kWarps = kThreads / 32;
constexpr int kLeft = 33;   // places of a warp in scratch memory: a set of each lane, and one that is not used

// The lanes of a warp whose numbers are equal modulo `period` hold sets of the same A channels. They merge them, then
// the warps leave them in shared memory.
struct Counted {
    float off, m2, count;

    BNFOLD_DEVICE Moments set() const { return {off, m2}; }
};

// Where they are left. Of several channels, a lane goes on with one half and gets another lane's sets of it, until it
// has one set: so each lane leaves one, and of a channel there may still be several from a warp.
template <int A>
struct Left {
    static constexpr int halves = 32 / A;   // lanes that go on with the same one of A channels
    static constexpr int most = A == 1 ? kWarps : kWarps * halves / 2;   // sets of a channel: its unit is two vectors
    const int period;   // of several channels at most `halves`: a unit has 64 bytes at most

    // From a warp to the next; of several channels, to other banks.
    BNFOLD_DEVICE int stride() const { return A == 1 ? period : kLeft; }
    BNFOLD_DEVICE int sets() const {
        if (A == 1 || period >= halves) return kWarps;
        return 2 * period >= halves ? 2 * kWarps : most;
    }
    // Of channel c, those of a warp begin here; and the k-th one of a warp.
    BNFOLD_DEVICE int place(int c, int warp) const {
        if constexpr (A == 1) return warp * period + c;
        const auto channel = static_cast<unsigned>(c);
        return warp * kLeft + static_cast<int>(channel % A * halves + channel / A);
    }
    BNFOLD_DEVICE int place(int c, int warp, int k) const { return place(c, warp) + k * period; }
    // What this thread leaves, if anything.
    template <class Item>
    BNFOLD_DEVICE void leave(const Item& item, Item* scratch) const {
        const int lane = port::thread() % 32;
        if (A > 1 || lane < period) scratch[port::thread() / 32 * stride() + lane] = item;
    }
};

// Joins the sets of two lanes: first it hears which lanes.
struct JoinedMoments {
    float count;   // of the values of each of this lane's sets
    Weights weights = {0, 0};

    BNFOLD_DEVICE void meet(int mask) {
        const float others = port::shuffle_xor(count, mask);
        weights = Weights(count, others);
        count += others;
    }
    BNFOLD_DEVICE Moments operator()(const Moments& own, const Moments& given, int mask) const {
        return merged(own, {port::shuffle_xor(given.off, mask), port::shuffle_xor(given.m2, mask)}, weights);
    }
};
struct JoinedSums {
    BNFOLD_DEVICE void meet(int) {}
    BNFOLD_DEVICE Sums operator()(const Sums& own, const Sums& given, int mask) const {
        return {own.dz + port::shuffle_xor(given.dz, mask), own.dz_x + port::shuffle_xor(given.dz_x, mask)};
    }
};

// One of two, both in registers.
BNFOLD_DEVICE Moments chosen(bool first, const Moments& a, const Moments& b) {
    return {first ? a.off : b.off, first ? a.m2 : b.m2};
}
BNFOLD_DEVICE Sums chosen(bool first, const Sums& a, const Sums& b) {
    return {first ? a.dz : b.dz, first ? a.dz_x : b.dz_x};
}

template <int A, int Mask = 16, class Set, class Join>
BNFOLD_DEVICE Set halved(const Set (&sets)[A], Join& join) {
    if constexpr (A == 1) {
        return sets[0];
    } else {
        const bool upper = (port::thread() & Mask) != 0;
        Set half[A / 2];
        join.meet(Mask);
#pragma unroll
        for (int i = 0; i < A / 2; ++i) {
            half[i] = join(chosen(upper, sets[i + A / 2], sets[i]), chosen(upper, sets[i], sets[i + A / 2]), Mask);
        }
        return halved<A / 2, Mask / 2>(half, join);
    }
}
// What a thread has in the end.
template <int A, class Set, class Join>
BNFOLD_DEVICE Set over_warp(const Set (&sets)[A], int period, Join& join) {
    Set all = halved<A>(sets, join);
    if constexpr (A == 1) {
        for (int mask = 16; mask >= period; mask /= 2) {
            join.meet(mask);
            all = join(all, all, mask);
        }
    }
    return all;
}

// count: of this thread's values of each channel.
template <int A>
BNFOLD_DEVICE void put(const Moments (&sets)[A], float count, Left<A> left, Counted* scratch) {
    JoinedMoments join = {count};
    const Moments all = over_warp(sets, left.period, join);
    // Not a maximum, which would lose NaN.
    left.leave(Counted{all.off, all.m2 < 0 ? 0 : all.m2, join.count}, scratch);
}
template <int A>
BNFOLD_DEVICE void put(const Sums (&sums)[A], Left<A> left, Sums* scratch) {
    JoinedSums join;
    left.leave(over_warp(sums, left.period, join), scratch);
}

// The sum of a value in each of `Lanes` neighbouring lanes.
template <int Lanes>
BNFOLD_DEVICE float over_lanes(float sum) {
#pragma unroll
    for (int mask = Lanes / 2; mask > 0; mask /= 2) sum += port::shuffle_xor(sum, mask);
    return sum;
}

constexpr int kMostRanks = 160;   // blocks of a unit at most: of all, a lane's sets are on their way at one time

// The sets of one of `Lanes` neighbouring lanes, all read before any is used: of `Most` those that there are. Others
// are zero. The lane's k-th is number lane + k * Lanes: get(lane, k * Lanes).
template <class Set, int Lanes, int Most>
struct Hand {
    static constexpr int size = Most / Lanes;
    Set sets[size] = {};

    template <class Get>
    BNFOLD_DEVICE Hand(int count, Get get) {
        const int lane = port::thread() % Lanes, left = count - lane;
#pragma unroll
        for (int k = 0; k < size; ++k) {
            if (k * Lanes < left) sets[k] = get(lane, k * Lanes);
        }
    }
};

// The union of up to `Most` sets of count(...) values each; share: 1 / the number of all values. A set of no values is
// zero.
template <int Lanes, int Most, class Get, class Count>
BNFOLD_DEVICE Moments whole(int sets, Get get, Count count, float share) {
    const Hand<Moments, Lanes, Most> mine(sets, get);
    const Hand<float, Lanes, Most> numbers(sets, count);
    float offs = 0, m2 = 0;
#pragma unroll
    for (int k = 0; k < mine.size; ++k) {
        offs += numbers.sets[k] * mine.sets[k].off;
        m2 += mine.sets[k].m2;
    }
    const float off = share * over_lanes<Lanes>(offs);
#pragma unroll
    for (int k = 0; k < mine.size; ++k) {
        const float gap = mine.sets[k].off - off;
        m2 += numbers.sets[k] * gap * gap;
    }
    return {off, over_lanes<Lanes>(m2)};
}
template <int Lanes, int Most, class Get>
BNFOLD_DEVICE Sums whole(int sets, Get get) {
    const Hand<Sums, Lanes, Most> mine(sets, get);
    Sums sum;
#pragma unroll
    for (int k = 0; k < mine.size; ++k) sum = {sum.dz + mine.sets[k].dz, sum.dz_x + mine.sets[k].dz_x};
    return {over_lanes<Lanes>(sum.dz), over_lanes<Lanes>(sum.dz_x)};
}

// Calls use(c, first) for each channel c < width in `Lanes` neighbouring lanes, of which one is the first. Whole
// warps call it: with channel 0 and no first one where there are no more channels.
template <int Lanes, class Use>
BNFOLD_DEVICE void each_channel(int width, Use use) {
    const int lane = port::thread() % 32;
#pragma unroll 1
    for (int at = port::thread() / 32 * (32 / Lanes); at < width; at += kThreads / Lanes) {
        const int c = at + lane / Lanes;
        use(c < width ? c : 0, c < width && lane % Lanes == 0);
    }
}

// Lanes that merge what the blocks of a grid left of a channel: so many that a block's warps merge 64 bytes of channels
// (launch.py's TILE) at one time.
template <int V, Layout L>
constexpr int kListeners = L == Layout::columns && V >= 8 ? 16 : 32;

// How the blocks of a unit hear of each other.
enum class Exchange {
    none,     // there is one
    cluster,  // they read each other's shared memory (compute capability 9.0 on)
    grid,     // through global memory; all blocks of a cooperative launch are resident
    ring,     // as well, while the next units are on their way (ring.cuh)
    long_ring,   // as well; blocks read again what they cannot hold (long_ring.cuh)
};

// A barrier of the blocks of a unit, in two halves, for one thread of each. The word's highest bit changes when the
// last block arrives, and its other bits are zero again: it is ready for the next use. What a block wrote before a
// barrier of its threads and `arrive`, the others may read behind `await` and a barrier of theirs.
BNFOLD_DEVICE unsigned arrive(unsigned* word, int rank, int ranks) {
    return port::add_release(word, rank == 0 ? 0x80000000u - static_cast<unsigned>(ranks - 1) : 1u);
}
BNFOLD_DEVICE void await(const unsigned* word, unsigned before) {
    while (((before ^ port::load_acquire(word)) & 0x80000000u) == 0) port::spin();
}
BNFOLD_DEVICE void sync_ranks(unsigned* word, int rank, int ranks) {
    port::sync_block();
    if (port::thread() == 0) await(word, arrive(word, rank, ranks));
    port::sync_block();
}

// Where the blocks of a unit leave their sets for each other.
template <Exchange E, class Set>
struct Mailbox {
    Set* shared;       // [kMostChannels] in each block; Exchange::cluster
    Set* global;       // [units][group][ranks]; Exchange::grid
    unsigned* word;    // of these blocks, zero before its first use ever; Exchange::grid
    int group, ranks, rank, unit;

    BNFOLD_DEVICE Set* letter(int c, int of) const {
        if constexpr (E == Exchange::grid) {
            return global + ((static_cast<long long>(unit) * group + c) * ranks + of);
        }
        return shared + c;
    }
    BNFOLD_DEVICE void post(int c, const Set& mine) const { *letter(c, rank) = mine; }
    // Of rank `from + more`.
    BNFOLD_DEVICE Set read(int c, int from, int more) const {
        if constexpr (E == Exchange::cluster) return *port::of_peer(shared + c, from + more);
        return letter(c, from)[more];
    }
    // All have posted.
    BNFOLD_DEVICE void wait() const {
        if constexpr (E == Exchange::cluster) port::sync_cluster();
        if constexpr (E == Exchange::grid) sync_ranks(word, rank, ranks);
    }
    // This block has read what it wants, and a barrier of the block; then all have: nobody changes a letter, or ends,
    // before.
    BNFOLD_DEVICE void leave() const {
        if constexpr (E == Exchange::cluster) port::arrive_cluster();
        port::sync_block();
    }
    BNFOLD_DEVICE void left() const {
        if constexpr (E == Exchange::cluster) port::wait_cluster();
    }
};

}  // namespace bnfold
