// Sets merged over the threads of a block, and over the blocks of a unit: always in the same order, without atomics
// on numbers, so that a result repeats bit by bit.

#pragma once

#include "moments.cuh"
#include "work.cuh"

namespace bnfold {

constexpr int kWarps = kThreads / 32;

// Within a warp, lanes whose numbers are equal modulo `period` hold the same A channels; `slots` = A * period is how
// many a warp has. Each warp leaves its sets in scratch[warp * slots + channel].

struct Counted {
    Moments set;
    float count;
};

// count: of this thread's values of each channel.
template <int A>
BNFOLD_DEVICE void put(Moments (&sets)[A], float count, int period, Counted* scratch) {
    const int lane = port::thread() % 32, warp = port::thread() / 32;
    for (int mask = 16; mask >= period; mask /= 2) {
        const float others = port::shuffle_xor(count, mask);
        const Weights weights(count, others);
        count += others;
#pragma unroll
        for (int i = 0; i < A; ++i) {
            const Moments other = {port::shuffle_xor(sets[i].off, mask), port::shuffle_xor(sets[i].m2, mask)};
            sets[i] = merged(sets[i], other, weights);
        }
    }
    if (lane < period) {
#pragma unroll
        for (int i = 0; i < A; ++i) scratch[(warp * period + lane) * A + i] = {sets[i], count};
    }
}

template <int A>
BNFOLD_DEVICE void put(Sums (&sums)[A], int period, Sums* scratch) {
    const int lane = port::thread() % 32, warp = port::thread() / 32;
#pragma unroll
    for (int i = 0; i < A; ++i) {
        for (int mask = 16; mask >= period; mask /= 2) {
            sums[i].dz += port::shuffle_xor(sums[i].dz, mask);
            sums[i].dz_x += port::shuffle_xor(sums[i].dz_x, mask);
        }
        if (lane < period) scratch[(warp * period + lane) * A + i] = sums[i];
    }
}

// The sum of a value in each of `Lanes` neighbouring lanes.
template <int Lanes>
BNFOLD_DEVICE float over_lanes(float sum) {
#pragma unroll
    for (int mask = Lanes / 2; mask > 0; mask /= 2) sum += port::shuffle_xor(sum, mask);
    return sum;
}

// The sum of term(i) over i < count, in each of `Lanes` neighbouring lanes.
template <int Lanes, class Term>
BNFOLD_DEVICE float added(int count, Term term) {
    float sum = 0;
#pragma unroll 1
    for (int i = port::thread() % Lanes; i < count; i += Lanes) sum += term(i);
    return over_lanes<Lanes>(sum);
}

// The union of sets: get(i), of count(i) values, of `values` together. Without a division for each.
template <int Lanes, class Get, class Count>
BNFOLD_DEVICE Moments one_by_one(int sets, Get get, Count count, float values) {
    const float share = values == 0 ? 0 : 1.0f / values;
    const float off = share * added<Lanes>(sets, [&](int i) {
        const float number = count(i);
        return number == 0 ? 0 : number * get(i).off;
    });
    const float m2 = added<Lanes>(sets, [&](int i) {
        const Moments set = get(i);
        const float gap = set.off - off, number = count(i);
        return number == 0 ? 0 : set.m2 + number * gap * gap;
    });
    return {off, m2};
}

template <int Lanes, class Get>
BNFOLD_DEVICE Sums one_by_one(int sets, Get get) {
    return {added<Lanes>(sets, [&](int i) { return get(i).dz; }),
            added<Lanes>(sets, [&](int i) { return get(i).dz_x; })};
}

// Blocks of a grid whose sets are all on their way before the first is used: as many as there are multiprocessors.
// Where values are read one by one, which is slow anyway, registers are better used for those.
template <int V>
constexpr int kMostRanks = V == 1 ? 64 : 160;

// The sets of one of `Lanes` neighbouring lanes, all read before any is used: of `Most` those that there are, and in
// the place of each other the first one, so that there are no branches.
template <class Set, int Lanes, int Most>
struct Hand {
    static constexpr int size = Most / Lanes;
    Set sets[size];

    template <class Get>
    BNFOLD_DEVICE Hand(int count, Get get) {
#pragma unroll
        for (int k = 0; k < size; ++k) sets[k] = get(index(k, count));
    }
    BNFOLD_DEVICE static bool there(int k, int count) { return port::thread() % Lanes + k * Lanes < count; }
    BNFOLD_DEVICE static int index(int k, int count) {
        return there(k, count) ? port::thread() % Lanes + k * Lanes : 0;
    }
};

// The same, but up to `Most` are read at one time. More are read one by one; where Most == Lanes, there are no more.
template <int Lanes, int Most = Lanes, class Get, class Count>
BNFOLD_DEVICE Moments whole(int sets, Get get, Count count, float values) {
    if (Most > Lanes && sets > Most) return one_by_one<Lanes>(sets, get, count, values);
    const float share = values == 0 ? 0 : 1.0f / values;
    using Mine = Hand<Moments, Lanes, Most>;
    const Mine mine(sets, get);
    float numbers[Mine::size], offs = 0, within = 0, between = 0;
#pragma unroll
    for (int k = 0; k < Mine::size; ++k) {
        const float number = count(Mine::index(k, sets));
        numbers[k] = Mine::there(k, sets) ? number : 0;
        offs += numbers[k] == 0 ? 0 : numbers[k] * mine.sets[k].off;
        within += numbers[k] == 0 ? 0 : mine.sets[k].m2;
    }
    const float off = share * over_lanes<Lanes>(offs);
#pragma unroll
    for (int k = 0; k < Mine::size; ++k) {
        const float gap = mine.sets[k].off - off;
        between += numbers[k] == 0 ? 0 : numbers[k] * gap * gap;
    }
    return {off, over_lanes<Lanes>(within + between)};
}

template <int Lanes, int Most = Lanes, class Get>
BNFOLD_DEVICE Sums whole(int sets, Get get) {
    if (Most > Lanes && sets > Most) return one_by_one<Lanes>(sets, get);
    using Mine = Hand<Sums, Lanes, Most>;
    const Mine mine(sets, get);
    Sums sum;
#pragma unroll
    for (int k = 0; k < Mine::size; ++k) {
        const bool there = Mine::there(k, sets);
        sum = {sum.dz + (there ? mine.sets[k].dz : 0), sum.dz_x + (there ? mine.sets[k].dz_x : 0)};
    }
    return {over_lanes<Lanes>(sum.dz), over_lanes<Lanes>(sum.dz_x)};
}

// Calls use(c, first) for each channel c < width in `Lanes` neighbouring lanes, of which one is the first. Whole
// warps call it: with channel 0 and no first one where there are no more channels.
template <int Lanes, class Use>
BNFOLD_DEVICE void each_channel(int width, Use use) {
    const int lane = port::thread() % 32;
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
    unsigned* words;   // [blocks / ranks], zero before their first use ever; Exchange::grid
    int group, ranks, rank, unit;

    BNFOLD_DEVICE Set* letter(int c, int of) const {
        if constexpr (E == Exchange::grid) {
            return global + ((static_cast<long long>(unit) * group + c) * ranks + of);
        }
        return shared + c;
    }
    BNFOLD_DEVICE void post(int c, const Set& mine) const { *letter(c, rank) = mine; }
    BNFOLD_DEVICE Set read(int c, int of) const {
        if constexpr (E == Exchange::cluster) return *port::of_peer(letter(c, of), of);
        return *letter(c, of);
    }
    // All have posted.
    BNFOLD_DEVICE void wait() const {
        if constexpr (E == Exchange::cluster) port::sync_cluster();
        if constexpr (E == Exchange::grid) sync_ranks(words + port::block() / ranks, rank, ranks);
    }
    // All have read what they want: nobody changes a letter, or ends, before. And a barrier of the block.
    BNFOLD_DEVICE void leave() const {
        if constexpr (E == Exchange::cluster) {
            port::sync_cluster();
        } else {
            port::sync_block();
        }
    }
};

}  // namespace bnfold
