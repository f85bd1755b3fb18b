// Memory that a thread keeps for what it works on.

#pragma once

#include <cstdint>
#include <memory>

namespace qlocal {

// Memory that grows and is never given back before its end. 64-byte aligned.
class AlignedMemory {
  public:
    // At least `bytes`; what it held is lost when it grows.
    void* at_least(int64_t bytes);

  private:
    struct Free {
        void operator()(void* memory) const;
    };
    std::unique_ptr<void, Free> memory_;
    int64_t size_ = 0;
};

// At least `bytes` of this thread, until it asks again.
void* thread_scratch(int64_t bytes);

} // namespace qlocal
