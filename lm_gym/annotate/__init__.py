"""Preferences from people: a page on which a person compares two completions, and a store that loses no answer.

`lm-gym annotate serve` runs it (docs/annotate.md). The store is one SQLite file:

| module | what |
|---|---|
| `store`, `people`, `lending`, `answers` | the file; links and sessions; who compares what next; answers and undo |
| `importing`, `export` | rows in, TRL's preference format out |
| `agreement`, `aggregate`, `status` | how far annotators agree, what they say together, where the work stands |
| `selection` | which pairs to ask about next |
| `server`, `guard` | the page (extra `annotate`), and what protects it |
| `markdown`, `redteam` | text that can do nothing; a model to provoke |
"""
