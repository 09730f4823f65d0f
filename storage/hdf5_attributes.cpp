#include "storage/hdf5_calls.hpp"

namespace selfcal::hdf5 {

std::vector<std::string> Group::attributes() const {
  std::vector<std::string> names;
  const auto add = [](hid_t, const char* name, const H5A_info_t*, void* into) -> herr_t {
    static_cast<std::vector<std::string>*>(into)->emplace_back(name);
    return 0;
  };
  checked(H5Aiterate2(group_.id(), H5_INDEX_NAME, H5_ITER_INC, nullptr, add, &names), place(),
          "cannot list");
  std::sort(names.begin(), names.end());
  return names;
}

void Group::write_attribute(const std::string& name, const Type& type, const void* value) const {
  const Space space(H5Screate(H5S_SCALAR));
  const AttributeHandle made(checked(
      H5Acreate2(group_.id(), name.c_str(), type.id(), space.id(), H5P_DEFAULT, H5P_DEFAULT),
      place("@" + name), "cannot create", ExitCode::io));
  checked(H5Awrite(made.id(), type.id(), value), place("@" + name), "cannot write", ExitCode::io);
}

void Group::set(const std::string& name, const std::string& text) const {
  // Fixed length, in the object's header: covered by its checksum, unlike HDF5's heap of
  // variable-length strings.
  const Type type(H5Tcopy(H5T_C_S1));
  H5Tset_cset(type.id(), H5T_CSET_UTF8);
  H5Tset_strpad(type.id(), H5T_STR_NULLPAD);
  H5Tset_size(type.id(), std::max<size_t>(text.size(), 1));
  write_attribute(name, type, text.c_str());
}

void Group::set(const std::string& name, int64_t number) const {
  write_attribute(name, file_type(at::kLong), &number);
}

void Group::set(const std::string& name, double number) const {
  write_attribute(name, file_type(at::kDouble), &number);
}

void Group::set(const std::string& name, const Value& value) const {
  std::visit([&](const auto& plain) { set(name, plain); }, value);
}

std::map<std::string, Value> Group::values() const {
  std::map<std::string, Value> all;
  for (const auto& name : attributes()) {
    const AttributeHandle attribute(checked(H5Aopen(group_.id(), name.c_str(), H5P_DEFAULT),
                                            place("@" + name), "cannot open the attribute"));
    const Type type(
        checked(H5Aget_type(attribute.id()), place("@" + name), "cannot read the type"));
    switch (H5Tget_class(type.id())) {
      case H5T_STRING:
        all.emplace(name, text(name));
        break;
      case H5T_INTEGER:
        all.emplace(name, integer(name));
        break;
      default:
        all.emplace(name, real(name));
    }
  }
  return all;
}

bool Group::has_attribute(const std::string& name) const {
  return checked(H5Aexists(group_.id(), name.c_str()), place("@" + name), "cannot look up") > 0;
}

AttributeHandle Group::open_attribute(const std::string& name, H5T_class_t expected) const {
  AttributeHandle attribute(checked(H5Aopen(group_.id(), name.c_str(), H5P_DEFAULT),
                                    place("@" + name), "cannot open the attribute"));
  const Type type(checked(H5Aget_type(attribute.id()), place("@" + name), "cannot read the type"));
  const Space space(
      checked(H5Aget_space(attribute.id()), place("@" + name), "cannot read the shape"));
  if (H5Tget_class(type.id()) != expected || H5Sget_simple_extent_npoints(space.id()) != 1)
    fail(ExitCode::data, "{}: expected one {}", place("@" + name),
         expected == H5T_STRING    ? "string"
         : expected == H5T_INTEGER ? "integer"
                                   : "real number");
  return attribute;
}

std::string Group::text(const std::string& name) const {
  const AttributeHandle attribute = open_attribute(name, H5T_STRING);
  const Type type(H5Aget_type(attribute.id()));
  if (H5Tis_variable_str(type.id()) != 0)
    fail(ExitCode::data, "{}: expected a string of fixed length", place("@" + name));
  std::string text(H5Tget_size(type.id()), '\0');
  checked(H5Aread(attribute.id(), type.id(), text.data()), place("@" + name), "cannot read");
  text.resize(std::min(text.size(), text.find_last_not_of('\0') + 1));
  return text;
}

int64_t Group::integer(const std::string& name) const {
  int64_t number = 0;
  checked(H5Aread(open_attribute(name, H5T_INTEGER).id(), H5T_NATIVE_INT64, &number),
          place("@" + name), "cannot read");
  return number;
}

double Group::real(const std::string& name) const {
  double number = 0;
  checked(H5Aread(open_attribute(name, H5T_FLOAT).id(), H5T_NATIVE_DOUBLE, &number),
          place("@" + name), "cannot read");
  return number;
}

}  // namespace selfcal::hdf5
