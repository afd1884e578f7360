"""What the stage `harness` needs of lm-evaluation-harness: presets, folders of local tasks, back ends, tables."""
