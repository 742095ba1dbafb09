import tvjax  # noqa: F401  (Ctrl-C during the imports of a program then ends it without a word)
