"""`farm report`: a run's results as pages that a person reviews, offline, with the keyboard.

command   the command's options
source    results from a file or from the farm, and their pictures
rows      what a page has to know of a result
pages     pages of up to 1,000 results, and an index where there are more
shell     the HTML around the data, its policy and its assets
"""

from producer.report.pages import Written, write_report

__all__ = ["Written", "write_report"]
