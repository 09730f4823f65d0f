// Plots of the report: SVG as text, with no script and nothing to fetch.
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace selfcal::plots {

/// Text for HTML and SVG.
std::string escaped(const std::string& text);

struct Series {
  std::string name;
  std::string colour;
  bool dashed = false;
  std::vector<std::pair<double, double>> points;  // points that are not finite are left out
};

struct Range {
  double low = 0;
  double high = 1;
};
/// Range of all y values; nothing finite: 0 to 1. With `logarithmic`, of the positive ones.
Range range_of(const std::vector<Series>& series, bool logarithmic);

/// Values at which an axis has a mark: 1, 2, 5 times powers of ten, about `count` of them.
std::vector<double> marks(Range range, int count);
/// The same on a logarithmic axis.
std::vector<double> logarithmic_marks(Range range);

struct Chart {
  std::string title;
  std::string x_label;
  std::vector<Series> series;
  Range y;
  bool logarithmic = false;
  int width = 340;
  int height = 190;
};
std::string line_chart(const Chart& chart);

/// A part of a bar: its name is in the legend, its colour stays the same in every bar.
struct Segment {
  std::string name;
  std::string colour;
};
struct Bar {
  std::string label;
  std::vector<double> lengths;  // one a segment
};
/// Horizontal bars of stacked segments, with an axis of seconds below.
std::string stacked_bars(const std::vector<Segment>& segments, const std::vector<Bar>& bars,
                         int width = 1040);

/// What happened in each of a row's spans of time.
struct TimelineRow {
  std::string label;
  double span = 0;                         // seconds
  std::vector<std::vector<double>> spans;  // in each, seconds of every segment
};
/// Rows of columns stacked by their segments' shares, over one axis of seconds.
std::string timelines(const std::vector<Segment>& segments, const std::vector<TimelineRow>& rows,
                      int width = 1040);

}  // namespace selfcal::plots
