// What the tests ask of the stand-in for a GPU.
#pragma once

#include <map>
#include <string>
#include <utility>

namespace host_cuda {

struct Settings {
  bool reverse = false;       // the threads of a block start from the last one
  bool fail_next = false;     // the next launch fails
  int device = 0;             // the current one
  int driver_version = 13000;
  std::string problem;        // of the last kernel
  // (is_store, bytes) -> number of accesses
  std::map<std::pair<bool, int>, long> accesses;
  long launches = 0;
};

Settings& settings();

}  // namespace host_cuda
