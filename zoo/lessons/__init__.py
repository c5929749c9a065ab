"""Nine lessons as notebooks that run on three backends, with exercises whose answers a cell checks.

    zoo lessons                 the list
    zoo lessons 3               copy lesson 3 to the working folder and open it in Jupyter

    from zoo import lessons
    lessons.start(3)            in a notebook: Keras on the backend that was chosen
    lessons.check("3.1", 896)   say whether an answer is right and, if not, what went wrong

A lesson is two files of this folder: `03_convolution.md`, a notebook as text (jupytext), and `03_convolution.json`, its
exercises with their answers and with typical mistakes.

zoo.lessons.exercises   the lessons, their exercises, and grading an answer
zoo.lessons.notebook    what the cells of a lesson call
zoo.lessons.execution   a lesson as a notebook, executed without Jupyter
zoo.lessons.sheets      worksheets and answer sheets
zoo.lessons.grading     the answers of a class as a table
"""

from zoo.lessons.exercises import check
from zoo.lessons.notebook import full_or_quick, key_figure, show, start

__all__ = ["check", "full_or_quick", "key_figure", "show", "start"]
