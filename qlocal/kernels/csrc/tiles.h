// AMX tiles: leave to use them. The system saves their state only for processes that have asked.

#pragma once

namespace qlocal {

// Ask once a process; whether it was granted. Without it the first instruction on tile data is fatal.
bool allow_tiles();

} // namespace qlocal
