"""Files, local or in a bucket, and the node-local cache of what lies in one."""
