"""Airflow operators: each validates, loads the documents that it names, calls one core function, writes the document
and returns its reference."""
