// The attributes of a node, as typed fields.
#include <algorithm>
#include <cstring>

#include "plugin.h"

namespace mamba_trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

double read_value(const PluginField& field, PluginFieldType type) {
  if (field.type != type || field.length != 1 || !field.data) {
    throw Refusal(std::string("field ") + field.name + " has type " +
                  std::to_string(static_cast<int32_t>(field.type)) + " and length " +
                  std::to_string(field.length) + ", expected one " +
                  (type == PluginFieldType::kINT32 ? "INT32" : "FLOAT32"));
  }
  // In an engine a value need not be aligned.
  if (type == PluginFieldType::kFLOAT32) {
    float number = 0.f;
    std::memcpy(&number, field.data, sizeof number);
    check_float(field.name, number);
    return number;
  }
  int32_t number = 0;
  std::memcpy(&number, field.data, sizeof number);
  return number;
}

// A value that is read at most once.
struct Slot {
  const char* name;
  PluginFieldType type;
  bool is_known = false;
  double value = 0.;
};

void check_flag(const Slot& slot) {
  if (slot.value != 0. && slot.value != 1.) {
    throw Refusal(std::string("field ") + slot.name + " is " +
                  std::to_string(static_cast<int32_t>(slot.value)) + ", expected 0 or 1");
  }
}

// The names of all slots: "silu, reverse and contract_version".
std::string names_of(const Slot* slots, int32_t count) {
  std::string text = slots[0].name;
  for (int32_t i = 1; i < count; ++i) {
    text += std::string(i + 1 < count ? ", " : " and ") + slots[i].name;
  }
  return text;
}

}  // namespace

PluginFieldType field_type(const Attribute& attribute) {
  return attribute.kind == AttributeKind::kFloat ? PluginFieldType::kFLOAT32
                                                 : PluginFieldType::kINT32;
}

Attributes read_fields(const Operator& op, const nvinfer1::PluginFieldCollection* fields,
                       bool from_engine) {
  if (!fields || fields->nbFields < 0 || (fields->nbFields > 0 && !fields->fields)) {
    throw Refusal("there are no fields");
  }
  // The attributes, then the version.
  Slot slots[kMaxAttributes + 1];
  const int32_t attributes = op.attributes.count, count = attributes + 1;
  for (int32_t i = 0; i < attributes; ++i) {
    slots[i] = {op.attributes[i].name, field_type(op.attributes[i])};
  }
  slots[attributes] = {kContractVersionField, PluginFieldType::kINT32};
  const Slot& version = slots[attributes];
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    if (!field.name) throw Refusal("a field has no name");
    Slot* slot = std::find_if(slots, slots + count, [&](const Slot& candidate) {
      return std::strcmp(field.name, candidate.name) == 0;
    });
    if (slot == slots + count) {
      throw Refusal(std::string("field ") + field.name + " is unknown: " + names_of(slots, count) +
                    " are known");
    }
    if (slot->is_known) throw Refusal(std::string("field ") + field.name + " is given twice");
    slot->value = read_value(field, slot->type);
    slot->is_known = true;
  }
  if (version.is_known && version.value != kContractVersion) {
    throw Refusal("the engine has version " + std::to_string(static_cast<int32_t>(version.value)) +
                  " of this operator, the library has version " + std::to_string(kContractVersion) +
                  ": build the engine again, or load the library that it was built with");
  }
  Attributes read;
  for (int32_t i = 0; i < count; ++i) {
    const bool is_needed = i < attributes || from_engine;
    if (is_needed && !slots[i].is_known) {
      throw Refusal(std::string("field ") + slots[i].name + " is missing");
    }
    if (i == attributes) break;
    if (op.attributes[i].kind == AttributeKind::kFlag) check_flag(slots[i]);
    read.values[i] = slots[i].value;
  }
  return read;
}

}  // namespace mamba_trt
