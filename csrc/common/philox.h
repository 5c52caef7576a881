// Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as
// 1, 2, 3"): four random words from a counter and a key, with no state, so that any element of a stream can be made
// alone and the CPU and the GPU make the same bits.
#pragma once

#include <cstdint>

#include "common/portable.h"

namespace lineavae {

struct PhiloxCounter {
  uint32_t word[4];
};
struct PhiloxKey {
  uint32_t word[2];
};

// The ten rounds, in place. Words may be 64 bits wide: then only their low halves count, and loops over this vectorise
// without a conversion in every round.
template <class Word>
LINEAVAE_HOST_DEVICE void philox_rounds(Word (&word)[4], PhiloxKey key) {
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t even = uint64_t{0xd2511f53u} * (word[0] & 0xffffffffu);
    const uint64_t odd = uint64_t{0xcd9e8d57u} * (word[2] & 0xffffffffu);
    word[0] = static_cast<Word>(odd >> 32) ^ word[1] ^ key.word[0];
    word[1] = static_cast<Word>(odd);
    word[2] = static_cast<Word>(even >> 32) ^ word[3] ^ key.word[1];
    word[3] = static_cast<Word>(even);
    key.word[0] += 0x9e3779b9u;
    key.word[1] += 0xbb67ae85u;
  }
}

LINEAVAE_HOST_DEVICE PhiloxCounter philox(PhiloxCounter counter, PhiloxKey key) {
  philox_rounds(counter.word, key);
  return counter;
}

}  // namespace lineavae
