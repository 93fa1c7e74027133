// What the tests ask of the stand-in for a GPU and its driver.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace host_cuda {

struct Settings {
  bool reverse = false;  // the threads of a block start from the last one
  int fail_next = 0;     // the driver's number for what the next launch fails with
  int device = 0;        // whose context is current; -1 for none
  int driver_version = 12000;
  std::pair<int, int> capability = {9, 0};
  std::string problem;   // of the last kernel
  // (is_store, bytes) -> number of accesses
  std::map<std::pair<bool, int>, long> accesses;
  // what the driver was asked to do: "retain 0", "current 0", "load 12 bytes", "launch finalize", and "overlap ..." for
  // a launch that may begin early
  std::vector<std::string> calls;
  long launches = 0;
};

Settings& settings();

}  // namespace host_cuda
