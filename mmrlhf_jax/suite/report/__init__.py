"""The page of runs: tables of all columns, and the documents on which two models differ most."""
