"""One pure loss per file: `(student, teacher)` in, one float32 value per tile out."""
