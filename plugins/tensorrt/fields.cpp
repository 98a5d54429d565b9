// The attributes of a node, as typed fields.
#include <cstring>

#include "plugin.h"

namespace mamba_trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

int32_t read_int(const PluginField& field) {
  if (field.type != PluginFieldType::kINT32 || field.length != 1 || !field.data) {
    throw Refusal(std::string("field ") + field.name + " has type " +
                  std::to_string(static_cast<int32_t>(field.type)) + " and length " +
                  std::to_string(field.length) + ", expected one INT32");
  }
  int32_t value = 0;
  std::memcpy(&value, field.data, sizeof value);  // in an engine it need not be aligned
  return value;
}

// A value that is read at most once.
struct Slot {
  const char* name;
  bool is_known = false;
  int32_t value = 0;
};

bool read_flag(const Slot& slot) {
  if (slot.value != 0 && slot.value != 1) {
    throw Refusal(std::string("field ") + slot.name + " is " + std::to_string(slot.value) +
                  ", expected 0 or 1");
  }
  return slot.value == 1;
}

}  // namespace

Attributes read_fields(const Operator& op, const nvinfer1::PluginFieldCollection* fields,
                       bool from_engine) {
  if (!fields || fields->nbFields < 0 || (fields->nbFields > 0 && !fields->fields)) {
    throw Refusal("there are no fields");
  }
  Slot slots[] = {{kReverse}, {op.flag}, {kContractVersionField}};
  const Slot &reverse = slots[0], &flag = slots[1], &version = slots[2];
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    if (!field.name) throw Refusal("a field has no name");
    Slot* slot = nullptr;
    for (Slot& candidate : slots) {
      if (std::strcmp(field.name, candidate.name) == 0) slot = &candidate;
    }
    if (!slot) {
      throw Refusal(std::string("field ") + field.name + " is unknown: " + kReverse + ", " +
                    op.flag + " and " + kContractVersionField + " are known");
    }
    if (slot->is_known) throw Refusal(std::string("field ") + field.name + " is given twice");
    slot->value = read_int(field);
    slot->is_known = true;
  }
  if (version.is_known && version.value != kContractVersion) {
    throw Refusal("the engine has version " + std::to_string(version.value) +
                  " of this operator, the library has version " + std::to_string(kContractVersion) +
                  ": build the engine again, or load the library that it was built with");
  }
  for (const Slot& slot : slots) {
    const bool is_needed = &slot != &version || from_engine;
    if (is_needed && !slot.is_known)
      throw Refusal(std::string("field ") + slot.name + " is missing");
  }
  return {read_flag(reverse), read_flag(flag)};
}

}  // namespace mamba_trt
