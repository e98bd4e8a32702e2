"""Reads an exposition on standard input with Prometheus's own Python client and reports its errors.

Prints one line per family: name, type, number of samples. Exits with 1 and the reasons if there are errors.
"""

import sys

from prometheus_client.parser import text_string_to_metric_families

text = sys.stdin.read()
wrong = []
seen = set()
for family in text_string_to_metric_families(text):
    print(family.name, family.type, len(family.samples))
    if family.type not in ("counter", "gauge", "histogram"):
        wrong.append(f"{family.name} has the type {family.type}")
    if not family.documentation:
        wrong.append(f"{family.name} has no help")
    if family.name in seen:
        wrong.append(f"{family.name} is there twice")
    seen.add(family.name)
    ones = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
    if len(ones) != len(set(ones)):
        wrong.append(f"{family.name} has a sample twice")
    if not family.samples:
        wrong.append(f"{family.name} has no samples")
    if family.type == "counter" and any(not sample.name.endswith("_total") for sample in family.samples):
        wrong.append(f"{family.name} is a counter without _total")
    if family.type == "counter" and any(sample.value < 0 for sample in family.samples):
        wrong.append(f"{family.name} is below zero")
    if family.type == "histogram":
        buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
        values = [sample.value for sample in buckets]
        count = [sample.value for sample in family.samples if sample.name.endswith("_count")]
        if values != sorted(values) or buckets[-1].labels["le"] != "+Inf" or count != values[-1:]:
            wrong.append(f"{family.name} does not add up: {values} {count}")
    for sample in family.samples:
        if {"tenant", "endpoint", "endpointId", "event"} & set(sample.labels):
            wrong.append(f"{family.name} has a label that grows: {sample.labels}")
if wrong:
    sys.exit("; ".join(wrong))
