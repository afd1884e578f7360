"""One thin Prefect task per stage: what it reads, its name, its retries. How a stage computes is in
spin_core/stages/."""
