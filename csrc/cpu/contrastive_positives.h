// Positive columns of each row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace slap_fast {

class Positives {
 public:
  // With ids: all columns that share the row's id. Without: column offset + row, if it exists.
  Positives(const std::int64_t* row_ids, std::int64_t rows, const std::int64_t* column_ids, std::int64_t columns,
            std::int64_t offset)
      : columns_(columns), offset_(offset) {
    if (row_ids == nullptr || column_ids == nullptr) return;
    sorted_.reserve(static_cast<std::size_t>(columns));
    for (std::int64_t column = 0; column < columns; ++column) sorted_.emplace_back(column_ids[column], column);
    std::sort(sorted_.begin(), sorted_.end());
    ranges_.reserve(static_cast<std::size_t>(rows));
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto begin = std::lower_bound(sorted_.begin(), sorted_.end(), std::pair(row_ids[row], std::int64_t{0}));
      const auto end = std::lower_bound(begin, sorted_.end(), std::pair(row_ids[row], columns));
      ranges_.emplace_back(begin - sorted_.begin(), end - sorted_.begin());
    }
  }

  std::int64_t count(std::int64_t row) const {
    if (!by_id()) return diagonal(row) >= 0;
    const auto& [begin, end] = ranges_[static_cast<std::size_t>(row)];
    return end - begin;
  }

  // The first positive column, or -1.
  std::int64_t first(std::int64_t row) const {
    if (!by_id()) return diagonal(row);
    const auto& [begin, end] = ranges_[static_cast<std::size_t>(row)];
    return begin < end ? sorted_[static_cast<std::size_t>(begin)].second : -1;
  }

  // Calls visit(column) for each positive column in [first, last), ascending.
  template <class Visit>
  void for_each(std::int64_t row, std::int64_t first, std::int64_t last, Visit visit) const {
    if (!by_id()) {
      const std::int64_t column = diagonal(row);
      if (column >= first && column < last) visit(column);
      return;
    }
    const auto& [begin, end] = ranges_[static_cast<std::size_t>(row)];
    if (begin == end) return;
    const auto stop = sorted_.begin() + end;
    const std::int64_t id = sorted_[static_cast<std::size_t>(begin)].first;
    auto at = std::lower_bound(sorted_.begin() + begin, stop, std::pair(id, first));
    for (; at != stop && at->second < last; ++at) visit(at->second);
  }

 private:
  bool by_id() const { return !ranges_.empty(); }
  std::int64_t diagonal(std::int64_t row) const {
    const std::int64_t column = offset_ + row;
    return column >= 0 && column < columns_ ? column : -1;
  }

  std::int64_t columns_, offset_;
  std::vector<std::pair<std::int64_t, std::int64_t>> sorted_;  // (id, column)
  std::vector<std::pair<std::int64_t, std::int64_t>> ranges_;  // [begin, end) in sorted_ per row
};

}  // namespace slap_fast
