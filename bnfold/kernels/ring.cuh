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

constexpr int kUnderWay = 3;   // the latest turns, for whose copies nobody waits while there is something to write

// The blocks that share units, and how they hear of each other. Two units may be waited for at one time: the next one
// may be told before the first one was heard of, so that each has its own word.
struct Team {
    const int rank, ranks, number, teams, group, units;   // units of this team
    unsigned* const words;
    unsigned before = 0;                                   // the words' highest bits, when the first thread arrived

    BNFOLD_DEVICE Team(const Shape& shape, unsigned* all_words)
        : rank(port::block() - Shares::quotient(port::block(), shape.ranks) * shape.ranks), ranks(shape.ranks),
          number(Shares::quotient(port::block(), shape.ranks)), teams(Shares::quotient(port::blocks(), shape.ranks)),
          group(shape.group), units(share(Shares::quotient(shape.channels, group))), words(all_words + 2 * number) {}
    // Of so many units, those of this team.
    BNFOLD_DEVICE int share(int all) const { return Shares::quotient(all - number + teams - 1, teams); }

    // Its k-th unit, and that unit's first channel.
    BNFOLD_DEVICE int unit(int k) const { return number + k * teams; }
    BNFOLD_DEVICE int channel(int k) const { return unit(k) * group; }

    // What the block wrote of its k-th unit, the others may read.
    BNFOLD_DEVICE void tell(int k) {
        port::sync_block();
        if (port::thread() != 0) return;
        const unsigned found = arrive(words + k % 2, rank, ranks) >> 31;
        before = (before & ~(1u << k % 2)) | found << k % 2;
    }
    // What the others wrote, this block may read.
    BNFOLD_DEVICE void hear(int k) const {
        if (port::thread() == 0) await(words + k % 2, before >> k % 2 << 31);
        port::sync_block();
    }
};

// The numbers of a thread's vectors in a tensor: those of a unit, then those of the next.
template <int V, Layout L>
struct Track {
    using Place = long long;
    long long at, start;         // of the next vector; of the unit's first
    unsigned offset, first;      // in its run
    unsigned row, over;          // vectors of a run; by how many more than whole runs the next vector is ahead
    long long step, wrap, unit;  // to the next vector; more where that is in the next run; to the next unit

    BNFOLD_DEVICE Track(const Part<V, L>& part, int teams) {
        const auto run = part.run_of(part.begin + port::thread()), next = part.run_of(kThreads);
        const long long stride = static_cast<long long>(part.shape.channels) * part.shape.inner / V;
        row = part.row;
        offset = first = run.offset;
        at = start = run.number * stride + static_cast<long long>(part.first) * part.shape.inner / V + first;
        over = next.offset;
        step = next.number * stride + over;
        wrap = stride - row;
        unit = static_cast<long long>(teams) * row;
    }
    template <int U>
    BNFOLD_DEVICE void take(Place (&places)[U]) {
#pragma unroll
        for (int u = 0; u < U; ++u) {
            places[u] = at;
            at += step;
            offset += over;
            if (offset >= row) offset -= row, at += wrap;
        }
    }
    // After so many vectors.
    BNFOLD_DEVICE void next_unit(int) {
        at = start += unit;
        offset = first;
    }
    // As it begins at a vector of the thread's k-th unit.
    BNFOLD_DEVICE Track ahead(const Part<V, L>& part, int k, int vector) const {
        const auto run = part.run_of(first + static_cast<long long>(vector) * kThreads);
        Track found = *this;
        found.offset = run.offset;
        found.at = start - first + k * unit + run.number * (row + wrap) + run.offset;
        return found;
    }
};

// A row divides the threads, so that each step is the same; the launcher takes tensors of less than 2^32 vectors.
template <int V>
struct Track<V, Layout::columns> {
    using Place = unsigned;
    Place at, step, unit;

    BNFOLD_DEVICE Track(const Part<V, Layout::columns>& part, int teams) {
        const auto run = part.run_of(part.begin + port::thread());
        const unsigned stride = static_cast<unsigned>(part.shape.channels) / V;
        at = static_cast<unsigned>(run.number) * stride + static_cast<unsigned>(part.first) / V + run.offset;
        step = static_cast<unsigned>(kThreads >> part.row_bits()) * stride;
        unit = static_cast<unsigned>(teams) * part.row;
    }
    template <int U>
    BNFOLD_DEVICE void take(Place (&places)[U]) {
#pragma unroll
        for (int u = 0; u < U; ++u) {
            places[u] = at;
            at += step;
        }
    }
    BNFOLD_DEVICE void next_unit(int vectors) { at += unit - step * static_cast<unsigned>(vectors); }
    BNFOLD_DEVICE Track ahead(const Part<V, Layout::columns>&, int k, int vector) const {
        Track found = *this;
        found.at += static_cast<unsigned>(k) * unit + static_cast<unsigned>(vector) * step;
        return found;
    }
};

// Passes the units of a block through its ring. A task says what is done, for each thread:
//
//     tensors, source(s, place)              what is copied; a turn has `vectors` of each thread
//     prepare(), prepare(k)                  what is done while the first turns are on their way; for a later unit
//     begin(k, slot)                         begins the sums of the k-th unit, with the thread's first vector
//     add<stays>(slot, origins(k), note)     adds a vector to them, which stays in its slot until it is written
//     tell(k, vectors), hear(k)              the block's sums of that unit, of so many vectors; those of all blocks
//     write(slot, place, channels(), more)   writes a vector of the unit that was heard of last
//     leave(k)                               that unit was written
//     notes, note(place)                     whether something else is loaded for `add`, a turn ahead
//     fetches, fetch(place)                  and for `write`
//
// A slot is where a vector of the first tensor lies; one of the next is `apart` places on.
template <class Task, int V, Layout L>
struct Ring {
    using Place = typename Track<V, L>::Place;
    static constexpr int U = Task::vectors, apart = U * kThreads, turn = Task::tensors * apart;
    Task& task;
    Track<V, L> fills, sums, writes;  // the second if something is loaded for the sums
    port::Bits16* const slots;        // [size][tensors][U][kThreads], of this thread
    const int size;                   // in turns
    const int mine, full, most;       // of a unit: vectors of this thread, turns without gaps, turns
    int filled = 0;                                      // turns so far
    int fill_turn = 0, sum_turn = 0, write_turn = 0;     // of their units
    int sum_unit = 0, unit = 0;
    int sum_at = 0, write_at = 0;                        // slots
    bool open = false;                // all blocks' sums of `unit` are known: it is written

    BNFOLD_DEVICE Ring(Task& t, const Part<V, L>& part, port::Bits16* memory, const Team& team)
        : task(t), fills(part, team.teams), sums(fills), writes(fills), slots(memory + port::thread()),
          size(part.shape.window / apart), mine(ceiling(count(part) - port::thread(), kThreads)),
          full(count(part) / apart), most(count(part) > 0 ? ceiling(count(part), apart) : 1) {}

    BNFOLD_DEVICE static int count(const Part<V, L>& part) { return static_cast<int>(part.end - part.begin); }
    BNFOLD_DEVICE bool all_filled() const { return filled == task.team.units * most; }

    BNFOLD_DEVICE port::Bits16* slot(int at, int u) const { return slots + at + u * kThreads; }
    BNFOLD_DEVICE void on(int& at) const {
        at += turn;
        if (at == size * turn) at = 0;
    }
    BNFOLD_DEVICE void copy(port::Bits16* to, Place from) const {
#pragma unroll
        for (int s = 0; s < Task::tensors; ++s) port::copy_async(to + s * apart, task.source(s, from));
    }
    BNFOLD_DEVICE void fetch(Track<V, L>& track, typename Task::More (&more)[U]) const {
        Place from[U];
        track.take(from);
#pragma unroll
        for (int u = 0; u < U; ++u) more[u] = task.fetch(from[u]);
    }
    BNFOLD_DEVICE void note(Track<V, L>& track, typename Task::Note (&noted)[U]) const {
        Place from[U];
        track.take(from);
#pragma unroll
        for (int u = 0; u < U; ++u) noted[u] = task.note(from[u]);
    }
    // Turns that are not summed yet.
    BNFOLD_DEVICE int behind() const { return filled - sum_unit * most - sum_turn; }
    // Waits for the first of them.
    BNFOLD_DEVICE void begin() {
        port::wait_groups(behind() - 1);
        if (sum_turn == 0) task.begin(sum_unit, slot(sum_at, 0));
    }

    BNFOLD_DEVICE void has_filled(int turns) {
        filled += turns;
        fill_turn += turns;
        if (fill_turn == most) {
            fill_turn = 0;
            fills.next_unit(most * U);
        }
    }
    BNFOLD_DEVICE void has_summed(int turns) {
        sum_turn += turns;
        if (sum_turn == most) {
            sum_turn = 0;
            if constexpr (Task::notes) sums.next_unit(most * U);
            task.tell(sum_unit++, mine);
            task.prepare(sum_unit + 1);  // the next unit's barriers come before anybody asks for it
        }
    }
    BNFOLD_DEVICE void has_written(int turns) {
        write_turn += turns;
        if (write_turn == most) {
            write_turn = 0;
            writes.next_unit(most * U);
            task.leave(unit++);
            open = false;
            ask();
        }
    }

    // One turn of each kind, with gaps or without.
    BNFOLD_DEVICE void fill(int at) {
        Place from[U];
        fills.take(from);
#pragma unroll
        for (int u = 0; u < U; ++u) {
            if (fill_turn * U + u < mine) copy(slot(at, u), from[u]);
        }
        port::end_group();
        has_filled(1);
    }
    BNFOLD_DEVICE void sum() {
        begin();
        const auto origins = task.origins(sum_unit);
        Place from[U] = {};
        if constexpr (Task::notes) sums.take(from);
#pragma unroll
        for (int u = 0; u < U; ++u) {
            if (sum_turn * U + u < mine) task.template add<true>(slot(sum_at, u), origins, task.note(from[u]));
        }
        on(sum_at);
    }
    BNFOLD_DEVICE void write() {
        const auto channels = task.channels();
        Place to[U];
        writes.take(to);
#pragma unroll
        for (int u = 0; u < U; ++u) {
            if (write_turn * U + u < mine) task.write(slot(write_at, u), to[u], channels, task.fetch(to[u]));
        }
    }

    // So many turns without gaps are summed, or written, or both; then those that were written are filled as well.
    template <bool Sums, bool Writes>
    BNFOLD_DEVICE void gapless(int turns) {
        if constexpr (Sums) begin();
        typename Task::Channels channels;
        typename Task::Note noted[U], next_noted[U];
        typename Task::More more[U];
        Track<V, L> ahead = writes;
        [[maybe_unused]] const int left = behind() - 1;
        if constexpr (Sums && Task::notes) note(sums, noted);
        if constexpr (Writes) channels = task.channels();
        if constexpr (Writes && Task::fetches) fetch(ahead, more);
#pragma unroll 1
        for (int i = 0; i < turns; ++i) {
            const bool last = i + 1 == turns;
            [[maybe_unused]] Place to[U], from[U];
            if constexpr (Writes) {
                writes.take(to);
#pragma unroll
                for (int u = 0; u < U; ++u) task.write(slot(write_at, u), to[u], channels, more[u]);
                if constexpr (Task::fetches) {
                    if (!last) fetch(ahead, more);
                }
            }
            if constexpr (Sums && Writes) {
                // What was in the slots is used up.
                fills.take(from);
#pragma unroll
                for (int u = 0; u < U; ++u) copy(slot(write_at, u), from[u]);
                port::end_group();
                port::wait_groups<kUnderWay>();
            } else if constexpr (Sums) {
                port::wait_groups(left - i);
            }
            if constexpr (Sums) {
                if constexpr (Task::notes) {
                    if (!last) note(sums, next_noted);
                }
                const auto origins = task.origins(sum_unit);  // each time: registers are few
#pragma unroll
                for (int u = 0; u < U; ++u) task.template add<true>(slot(sum_at, u), origins, noted[u]);
                on(sum_at);
            }
            if constexpr (Writes) on(write_at);
#pragma unroll
            for (int u = 0; u < U; ++u) {
                if constexpr (Sums && Task::notes) noted[u] = next_noted[u];
            }
        }
        if constexpr (Sums && Writes) has_filled(turns);
    }

    // Asks L2 for what comes behind the ring.
    BNFOLD_DEVICE void ask() const {
        if (all_filled()) return;
        Track<V, L> early = fills;
#pragma unroll 1
        for (int i = fill_turn * U; i < fill_turn * U + kAhead / Task::tensors && i < mine; ++i) {
            Place from[1];
            early.take(from);
#pragma unroll
            for (int s = 0; s < Task::tensors; ++s) port::prefetch(task.source(s, from[0]));
        }
    }

    BNFOLD_DEVICE void pass() {
#pragma unroll 1
        for (int at = 0; !all_filled() && filled < size; at += turn) fill(at);
        ask();
        task.prepare();
#pragma unroll 1
        while (unit < task.team.units) {
            const bool ends = all_filled();
            // A unit may be told once the one two before it was heard of, whose word it uses.
            const bool free = sum_unit < unit + (open ? 3 : 2);
            const int unsummed = behind(), left = full - write_turn;
            const int landed = ends || sum_unit == unit ? unsummed : unsummed - kUnderWay;
            const int alike = least(left, least(full - fill_turn, full - sum_turn));
            int sums_done = 0, writes_done = 0;
            if (open && !ends && free && unsummed >= kUnderWay && alike > 0) {
                gapless<true, true>(alike);
                sums_done = writes_done = alike;
            } else if (open && ends && unsummed == 0 && left > 0) {
                gapless<false, true>(left);
                writes_done = left;
            } else if (open) {
                write();
                writes_done = 1;
                if (!ends) fill(write_at);
                on(write_at);
                if (free && landed + !ends > 0) {
                    sum();
                    sums_done = 1;
                }
            } else if (free && landed > 0) {
                const int turns = least(landed, full - sum_turn);
                if (turns > 0) {
                    gapless<true, false>(turns);
                } else {
                    sum();
                }
                sums_done = turns > 0 ? turns : 1;
            } else {
                task.hear(unit);
                open = true;
            }
            if (sums_done > 0) has_summed(sums_done);
            if (writes_done > 0) has_written(writes_done);
        }
    }
};

}  // namespace bnfold
