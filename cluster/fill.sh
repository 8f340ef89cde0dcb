#!/usr/bin/env bash
# Prints a file of this folder with its words in capitals replaced by the environment's variables of the same names.
#
#   BUCKET=my-slides PREFIX=csat REGION=eu-central-1 ACCOUNT_ID=123456789012 cluster/fill.sh cluster/iam/worker.json
set -euo pipefail

file=${1:?usage: cluster/fill.sh FILE}
rules=()
for word in ACCOUNT_ID AMI_ID BUCKET PREFIX PROJECT_ID REGION REGISTRY SECURITY_GROUP_ID ZONE; do
    grep -qw "$word" "$file" || continue
    rules+=(-e "s|\b$word\b|${!word:?is in $file: export it first}|g")
done
sed -e "" "${rules[@]}" "$file"
