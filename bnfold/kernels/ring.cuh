// Units of which a block has one after the other pass through a ring of shared memory. A block's part of a unit is
// divided into turns of a few vectors for each thread. A turn that was written makes room for one that is copied, while
// the sums of those in between go on:
//
//     turns    | k   k   k   k   k   k | k+1 k+1 k+1 k+1 k+1 k+1 | k+2 k+2 ...
//                    ^ written                   ^ summed             ^ filled
//                    |<-- the ring: as many turns as shared memory holds -->|
//
// So the values of a unit arrive while the one before it is written, and while its blocks wait for each other's sums.
// Each thread copies, sums and writes places of its own: only the sums of a unit need barriers. All threads of a block
// do the same turns at the same time, but the last turn of a unit may have gaps.

#pragma once

#include "reduce.cuh"
#include "work.cuh"

namespace bnfold {

constexpr int kTurn = 2;       // vectors of each thread in a turn
constexpr int kUnderWay = 3;   // the latest turns, for whose copies nobody waits while there is something to write
constexpr int kEarly = 12;     // vectors of each thread behind the ring that L2 is asked to have: 96 KB of a tensor

// The blocks that share units, and how they hear of each other. Two units may be waited for at one time: the next one
// may be told before the first one was heard of, so that each has its own word.
struct Team {
    const int rank, ranks, number, teams, group, units;   // units of this team
    unsigned* const words;
    unsigned before[2] = {};                               // of the words, to the first thread

    BNFOLD_DEVICE Team(const Shape& shape, unsigned* all_words)
        : rank(port::block() % shape.ranks), ranks(shape.ranks), number(port::block() / shape.ranks),
          teams(port::blocks() / shape.ranks), group(shape.group),
          units((shape.channels / shape.group - number + teams - 1) / teams), words(all_words + 2 * number) {}

    // The first channel of its k-th unit.
    BNFOLD_DEVICE int channel(int k) const { return (number + k * teams) * group; }

    // What the block wrote of its k-th unit, the others may read.
    BNFOLD_DEVICE void tell(int k) {
        port::sync_block();
        if (port::thread() == 0) (k % 2 == 0 ? before[0] : before[1]) = arrive(words + k % 2, rank, ranks);
    }
    // What the others wrote, this block may read.
    BNFOLD_DEVICE void hear(int k) const {
        if (port::thread() == 0) await(words + k % 2, k % 2 == 0 ? before[0] : before[1]);
        port::sync_block();
    }
};

// Where the vectors of a thread are, in bytes from a tensor's start: those of a unit, then those of the next.
template <int V, Layout L>
struct Track {
    long long at, start;         // of the next vector; of the unit's first
    unsigned offset, first;      // in its run, in vectors
    unsigned row, over;          // vectors of a run; by how many more than whole runs the next vector is ahead
    long long step, wrap, unit;  // to the next vector; more where that is in the next run; to the next unit

    BNFOLD_DEVICE Track(const Part<V, L>& part, int teams, int size) {
        const auto& shape = part.shape;
        const long long stride = static_cast<long long>(shape.channels) * shape.inner * size;
        const long long vector = part.begin + port::thread();
        row = part.row;
        offset = first = static_cast<unsigned>(vector % row);
        at = start = vector / row * stride + static_cast<long long>(part.first) * shape.inner * size + first * 16ll;
        over = kThreads % row;
        step = kThreads / row * stride + over * 16ll;
        wrap = stride - row * 16ll;
        unit = static_cast<long long>(teams) * shape.group * shape.inner * size;
    }
    BNFOLD_DEVICE void take(long long (&places)[kTurn]) {
#pragma unroll
        for (int u = 0; u < kTurn; ++u) {
            places[u] = at;
            at += step;
            if constexpr (L != Layout::columns) {  // of those, a row divides the threads
                offset += over;
                if (offset >= row) offset -= row, at += wrap;
            }
        }
    }
    BNFOLD_DEVICE void next_unit() {
        at = start += unit;
        offset = first;
    }
};

// Passes the units of a block through its ring. A task says what is done, for each thread:
//
//     tensors, source(s, place)       what is copied
//     begin(slot), add(slot)          sums of a unit, from its first vector on
//     tell(k, vectors), hear(k)       the block's sums of its k-th unit, of so many vectors, and those of all blocks
//     channels(), put(bits, place, channels, more)   writes a vector of a unit that was heard of
//     fetches, fetch(place)           what else is loaded for it, a turn ahead
template <class Task, int V, Layout L>
struct Ring {
    static constexpr int tensors = Task::tensors, turn = tensors * kTurn * kThreads;
    Task& task;
    Track<V, L> fills, writes;
    port::Bits16* const slots;        // [size][tensors][kTurn][kThreads], of this thread
    const int size;                   // in turns
    const int mine, full, most;       // of a unit: vectors of this thread, turns without gaps, turns
    const int total;                  // turns of all units
    int filled = 0, summed = 0, put = 0;              // turns so far
    int fill_turn = 0, sum_turn = 0, put_turn = 0;    // of their units
    int sum_unit = 0, unit = 0;
    int fill_at = 0, sum_at = 0, put_at = 0;          // slots
    bool open = false;                // the sums of `unit` are known: it is written

    BNFOLD_DEVICE Ring(Task& t, const Part<V, L>& part, port::Bits16* memory, int units, int teams, int value)
        : task(t), fills(part, teams, value), writes(fills), slots(memory + port::thread()),
          size(part.shape.window / (kTurn * kThreads)),
          mine(ceiling(static_cast<int>(part.end - part.begin) - port::thread(), kThreads)),
          full(static_cast<int>(part.end - part.begin) / (kTurn * kThreads)),
          most(part.end > part.begin ? ceiling(static_cast<int>(part.end - part.begin), kTurn * kThreads) : 1), total(units * most) {}

    BNFOLD_DEVICE static int ceiling(int a, int b) { return a > 0 ? (a + b - 1) / b : 0; }
    BNFOLD_DEVICE port::Bits16* slot(int at, int u, int s = 0) const {
        return slots + at + (s * kTurn + u) * kThreads;
    }
    BNFOLD_DEVICE void on(int& at) const {
        at += turn;
        if (at == size * turn) at = 0;
    }
    BNFOLD_DEVICE void copy(int at, int u, long long from) const {
#pragma unroll
        for (int s = 0; s < tensors; ++s) port::copy_async(slot(at, u, s), task.source(s, from));
    }

    // One turn of each kind, with gaps or without.
    BNFOLD_DEVICE void fill() {
        long long from[kTurn];
        fills.take(from);
#pragma unroll
        for (int u = 0; u < kTurn; ++u) {
            if (fill_turn * kTurn + u < mine) copy(fill_at, u, from[u]);
        }
        port::end_group();
        on(fill_at);
        has_filled(1);
    }
    BNFOLD_DEVICE void sum() {
        begin();
#pragma unroll
        for (int u = 0; u < kTurn; ++u) {
            if (sum_turn * kTurn + u < mine) task.add(slot(sum_at, u));
        }
        on(sum_at);
        has_summed(1);
    }
    BNFOLD_DEVICE void write() {
        long long to[kTurn];
        writes.take(to);
        const auto channels = task.channels();
#pragma unroll
        for (int u = 0; u < kTurn; ++u) {
            if (put_turn * kTurn + u < mine) put_one(u, to[u], channels, task.fetch(to[u]));
        }
        on(put_at);
        has_written(1);
    }
    // Waits for the first turn that is not summed yet.
    BNFOLD_DEVICE void begin() {
        port::wait_groups(filled - summed - 1);
        if (sum_turn == 0) task.begin(slot(sum_at, 0));
    }
    template <class Channels, class More>
    BNFOLD_DEVICE void put_one(int u, long long to, const Channels& channels, const More& more) const {
        port::Bits16 bits[tensors];
#pragma unroll
        for (int s = 0; s < tensors; ++s) bits[s] = *slot(put_at, u, s);
        task.put(bits, to, channels, more);
    }
    BNFOLD_DEVICE void has_filled(int turns) {
        filled += turns;
        fill_turn += turns;
        if (fill_turn == most) {
            fill_turn = 0;
            fills.next_unit();
        }
    }
    BNFOLD_DEVICE void has_summed(int turns) {
        summed += turns;
        sum_turn += turns;
    }
    BNFOLD_DEVICE void has_written(int turns) {
        put += turns;
        put_turn += turns;
    }

    // So many turns without gaps, in which everything goes on.
    BNFOLD_DEVICE void all(int turns) {
        begin();
        const auto channels = task.channels();
        Track<V, L> next = writes;
        typename Task::More more[kTurn], ahead[kTurn];
        if constexpr (Task::fetches) fetch(next, more);
#pragma unroll 1
        for (int i = turns; i > 0; --i) {
            long long from[kTurn], to[kTurn];
            fills.take(from);
            writes.take(to);
            if constexpr (Task::fetches) {
                if (i > 1) fetch(next, ahead);
            }
#pragma unroll
            for (int u = 0; u < kTurn; ++u) put_one(u, to[u], channels, more[u]);
            // What was in the slots is used up.
#pragma unroll
            for (int u = 0; u < kTurn; ++u) copy(put_at, u, from[u]);
            port::end_group();
            port::wait_groups<kUnderWay>();
#pragma unroll
            for (int u = 0; u < kTurn; ++u) task.add(slot(sum_at, u));
            on(put_at);
            on(sum_at);
            if constexpr (Task::fetches) {
#pragma unroll
                for (int u = 0; u < kTurn; ++u) more[u] = ahead[u];
            }
        }
        fill_at = put_at;
        has_filled(turns);
        has_summed(turns);
        has_written(turns);
    }
    BNFOLD_DEVICE void fetch(Track<V, L>& track, typename Task::More (&more)[kTurn]) const {
        long long from[kTurn];
        track.take(from);
#pragma unroll
        for (int u = 0; u < kTurn; ++u) more[u] = task.fetch(from[u]);
    }
    BNFOLD_DEVICE void sums(int turns) {
        begin();
#pragma unroll 1
        for (int i = 0; i < turns; ++i) {
            port::wait_groups(filled - summed - 1 - i);
#pragma unroll
            for (int u = 0; u < kTurn; ++u) task.add(slot(sum_at, u));
            on(sum_at);
        }
        has_summed(turns);
    }
    BNFOLD_DEVICE void write_all(int turns) {
        const auto channels = task.channels();
        Track<V, L> next = writes;
        typename Task::More more[kTurn], ahead[kTurn];
        if constexpr (Task::fetches) fetch(next, more);
#pragma unroll 1
        for (int i = turns; i > 0; --i) {
            long long to[kTurn];
            writes.take(to);
            if constexpr (Task::fetches) {
                if (i > 1) fetch(next, ahead);
            }
#pragma unroll
            for (int u = 0; u < kTurn; ++u) put_one(u, to[u], channels, more[u]);
            on(put_at);
            if constexpr (Task::fetches) {
#pragma unroll
                for (int u = 0; u < kTurn; ++u) more[u] = ahead[u];
            }
        }
        has_written(turns);
    }

    // Asks L2 for what comes behind the ring.
    BNFOLD_DEVICE void ask() const {
        if (filled == total) return;
        Track<V, L> early = fills;
#pragma unroll 1
        for (int i = fill_turn * kTurn; i < fill_turn * kTurn + kEarly && i < mine; i += kTurn) {
            long long from[kTurn];
            early.take(from);
#pragma unroll
            for (int u = 0; u < kTurn; ++u) {
                if (i + u < mine) {
#pragma unroll
                    for (int s = 0; s < tensors; ++s) port::prefetch(task.source(s, from[u]));
                }
            }
        }
    }

    BNFOLD_DEVICE void pass() {
#pragma unroll 1
        while (filled < total && filled < size) fill();
        ask();
#pragma unroll 1
        while (put < total) {
            // A unit may be told once the one two before it was heard of, whose word it uses.
            const bool free = sum_unit < unit + (open ? 3 : 2);
            const int behind = filled - summed, whole = full - put_turn;
            const int landed = filled == total || sum_unit == unit ? behind : behind - kUnderWay;
            const int to_sum = free ? landed : 0;
            const int alike = least(whole, least(full - fill_turn, full - sum_turn));
            if (open && filled < total && free && behind >= kUnderWay && alike > 0) {
                all(alike);
            } else if (open && summed == total && whole > 0) {
                write_all(whole);
            } else if (open) {
                write();
                const bool fills_one = filled < total;
                if (fills_one) fill();
                if (free && landed + fills_one > 0) sum();
            } else if (to_sum > 0 && sum_turn < full) {
                sums(least(to_sum, full - sum_turn));
            } else if (to_sum > 0) {
                sum();
            } else {
                task.hear(unit);
                open = true;
            }
            if (sum_turn == most) {
                task.tell(sum_unit++, mine);
                sum_turn = 0;
            }
            if (put_turn == most) {
                put_turn = 0;
                ++unit;
                writes.next_unit();
                open = false;
                ask();
            }
        }
    }
    BNFOLD_DEVICE static int least(int a, int b) { return a < b ? a : b; }
};

}  // namespace bnfold
