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

template <class Word>
struct WordProduct {
  Word high, low;
};

// Of two words of 32 bits.
template <class Word>
LINEAVAE_HOST_DEVICE WordProduct<Word> multiply_words(uint32_t factor, Word word) {
#ifdef __CUDA_ARCH__
  return {__umulhi(factor, word), factor * word};  // one instruction; a product of 64 bits costs nvcc 13.0 a second
#else
  const uint64_t product = uint64_t{factor} * (word & 0xffffffffu);
  return {static_cast<Word>(product >> 32), static_cast<Word>(product)};
#endif
}

// The ten rounds, in place. Words may be 64 bits wide: then only their low halves count, and loops over this vectorise
// without a conversion in every round.
template <class Word>
LINEAVAE_HOST_DEVICE void philox_rounds(Word (&word)[4], PhiloxKey key) {
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const WordProduct<Word> even = multiply_words(0xd2511f53u, word[0]), odd = multiply_words(0xcd9e8d57u, word[2]);
    word[0] = odd.high ^ word[1] ^ key.word[0];
    word[1] = odd.low;
    word[2] = even.high ^ word[3] ^ key.word[1];
    word[3] = even.low;
    key.word[0] += 0x9e3779b9u;
    key.word[1] += 0xbb67ae85u;
  }
}

LINEAVAE_HOST_DEVICE PhiloxCounter philox(PhiloxCounter counter, PhiloxKey key) {
  philox_rounds(counter.word, key);
  return counter;
}

}  // namespace lineavae
