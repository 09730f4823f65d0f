#include "pipeline/report_plots.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace selfcal::plots {
namespace {

constexpr const char* ink = "#333";
constexpr const char* faint = "#e6e6e6";

std::string label(double x, double y, const char* anchor, const std::string& text,
                  const char* more = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>", x, y,
                     anchor, more, escaped(text));
}

std::string line(double x1, double y1, double x2, double y2, const char* colour) {
  return fmt::format(
      "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"/>", x1, y1, x2,
      y2, colour);
}

std::string opening(int width, int height) {
  return fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" font-size=\"11\" fill=\"{}\">", width,
                     height, ink);
}

std::string number(double value) { return fmt::format("{:.4g}", value); }

bool finite(const std::pair<double, double>& point) {
  return std::isfinite(point.first) && std::isfinite(point.second);
}

/// Maps values to pixels.
class Scale {
 public:
  Scale(Range range, double from, double to, bool logarithmic)
      : low_(place(range.low, logarithmic)),
        span_(std::max(place(range.high, logarithmic) - low_, 1e-12)),
        from_(from),
        to_(to),
        logarithmic_(logarithmic) {}
  double operator()(double value) const {
    return from_ + (to_ - from_) * (place(value, logarithmic_) - low_) / span_;
  }

 private:
  static double place(double value, bool logarithmic) {
    return logarithmic ? std::log10(std::max(value, 1e-300)) : value;
  }
  double low_, span_, from_, to_;
  bool logarithmic_;
};

std::string curve(const Series& series, const Scale& x, const Scale& y, bool logarithmic) {
  std::string path, dots;
  for (const auto& point : series.points) {
    if (!finite(point) || (logarithmic && point.second <= 0)) continue;
    const double px = x(point.first), py = y(point.second);
    path += fmt::format("{}{:.1f},{:.1f}", path.empty() ? "" : " ", px, py);
    dots += fmt::format(
        "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\"><title>{}: layer {:g}, {}</title></circle>",
        px, py, series.dashed ? 1.2 : 2.0, escaped(series.name), point.first, number(point.second));
  }
  return fmt::format(
      "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"{}/><g "
      "fill=\"{}\">{}</g>",
      path, series.colour, series.dashed ? " stroke-dasharray=\"4 3\"" : "", series.colour, dots);
}

}  // namespace

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  return result;
}

Range range_of(const std::vector<Series>& series, bool logarithmic) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const auto& one : series)
    for (const auto& point : one.points) {
      if (!finite(point) || (logarithmic && point.second <= 0)) continue;
      low = std::min(low, point.second);
      high = std::max(high, point.second);
    }
  if (low > high) return logarithmic ? Range{0.1, 1} : Range{0, 1};
  if (!logarithmic) return {std::min(low, 0.0), high > 0 ? high * 1.05 : 1.0};
  return {low / 1.15, high * 1.15};
}

std::vector<double> marks(Range range, int count) {
  const double rough = std::max((range.high - range.low) / count, 1e-300);
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * power >= rough) {
      step = factor * power;
      break;
    }
  std::vector<double> values;
  for (double i = std::ceil(range.low / step - 1e-9) + 0.0; i * step <= range.high * (1 + 1e-12);
       ++i)
    values.push_back(i * step);
  return values;
}

std::vector<double> logarithmic_marks(Range range) {
  const double decades = std::log10(range.high / range.low);
  std::vector<double> values;
  for (double power = std::floor(std::log10(range.low)); power <= std::ceil(std::log10(range.high));
       ++power)
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (decades > 2.5 && factor > 1) continue;
      const double value = factor * std::pow(10.0, power);
      if (value >= range.low && value <= range.high) values.push_back(value);
    }
  return values;
}

std::string line_chart(const Chart& chart) {
  constexpr double left = 46, right = 8, top = 24, bottom = 32;
  double last = 1;
  for (const auto& series : chart.series)
    for (const auto& point : series.points) last = std::max(last, point.first);
  const double floor = chart.height - bottom;
  const Scale x({0, last}, left + 4, chart.width - right - 4, false);
  const Scale y(chart.y, floor, top, chart.logarithmic);

  std::string svg = opening(chart.width, chart.height);
  svg += label(left, 14, "start", chart.title, "font-weight=\"600\" font-size=\"12\"");
  for (const double mark : chart.logarithmic ? logarithmic_marks(chart.y) : marks(chart.y, 4)) {
    svg += line(left, y(mark), chart.width - right, y(mark), faint);
    svg += label(left - 5, y(mark) + 4, "end", number(mark), "fill=\"#777\"");
  }
  for (const double mark : marks({0, last}, 6))
    if (mark == std::floor(mark))
      svg += label(x(mark), floor + 14, "middle", number(mark), "fill=\"#777\"");
  svg +=
      label((left + chart.width) / 2, chart.height - 4, "middle", chart.x_label, "fill=\"#777\"");
  svg += line(left, floor, chart.width - right, floor, "#999");
  for (const auto& series : chart.series) svg += curve(series, x, y, chart.logarithmic);
  return svg + "</svg>";
}

std::string stacked_bars(const std::vector<Segment>& segments, const std::vector<Bar>& bars,
                         int width) {
  constexpr double left = 64, right = 64, bar_height = 22, gap = 8;
  double longest = 0;
  for (const auto& bar : bars)
    longest = std::max(longest, std::accumulate(bar.lengths.begin(), bar.lengths.end(), 0.0));
  const int height = static_cast<int>(static_cast<double>(bars.size()) * (bar_height + gap)) + 30;
  const Scale x({0, std::max(longest, 1e-9)}, left, width - right, false);
  const double floor = height - 26;

  std::string svg = opening(width, height);
  for (const double mark : marks({0, std::max(longest, 1e-9)}, 8)) {
    svg += line(x(mark), 0, x(mark), floor, faint);
    svg += label(x(mark), floor + 14, "middle", number(mark) + " s", "fill=\"#777\"");
  }
  double top = 2;
  for (const auto& bar : bars) {
    svg += label(left - 8, top + bar_height / 2 + 4, "end", bar.label);
    double before = 0;
    for (size_t i = 0; i < segments.size() && i < bar.lengths.size(); ++i) {
      const double after = before + bar.lengths[i];
      if (bar.lengths[i] > 0)
        svg += fmt::format(
            "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{}\" fill=\"{}\" "
            "stroke=\"#fff\" "
            "stroke-width=\"0.5\"><title>{}: {:.2f} s</title></rect>",
            x(before), top, x(after) - x(before), bar_height, segments[i].colour,
            escaped(segments[i].name), bar.lengths[i]);
      before = after;
    }
    svg += label(x(before) + 6, top + bar_height / 2 + 4, "start", fmt::format("{:.1f} s", before));
    top += bar_height + gap;
  }
  return svg + "</svg>";
}

std::string timelines(const std::vector<Segment>& segments, const std::vector<TimelineRow>& rows,
                      int width) {
  constexpr double left = 64, right = 64, row_height = 26, gap = 6;
  double longest = 1e-9;
  for (const auto& row : rows)
    longest = std::max(longest, row.span * static_cast<double>(row.spans.size()));
  const int height = static_cast<int>(static_cast<double>(rows.size()) * (row_height + gap)) + 30;
  const Scale x({0, longest}, left, width - right, false);
  const double floor = height - 26;

  std::string svg = opening(width, height);
  for (const double mark : marks({0, longest}, 8)) {
    svg += line(x(mark), 0, x(mark), floor, faint);
    svg += label(x(mark), floor + 14, "middle", number(mark) + " s", "fill=\"#777\"");
  }
  double top = 2;
  for (const auto& row : rows) {
    svg += label(left - 8, top + row_height / 2 + 4, "end", row.label);
    for (size_t i = 0; i < row.spans.size(); ++i) {
      const double from = x(row.span * static_cast<double>(i)),
                   to = x(row.span * static_cast<double>(i + 1));
      double y = top;
      for (size_t segment = 0; segment < segments.size(); ++segment) {
        const double share = row.spans[i][segment] / row.span * row_height;
        if (share < 0.05) continue;
        svg += fmt::format(
            "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{:.1f}\" fill=\"{}\"/>",
            from, y, to - from, share, segments[segment].colour);
        y += share;
      }
    }
    top += row_height + gap;
  }
  return svg + "</svg>";
}

}  // namespace selfcal::plots
