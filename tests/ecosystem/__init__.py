"""``make ecosystem``: the same cases beside each package that people use with Celery.

``catalogue.py`` lists the rows, ``adapters/`` says what each needs, ``cases.py`` what is shown.
"""
