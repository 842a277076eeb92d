"""Settings of the documentation, built by Sphinx without a network."""

import os
import sys
import warnings

# small problems lose time on many threads, above all where others work too
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [os.path.abspath(".."), os.path.abspath("_extensions")]

import matplotlib  # noqa: E402

matplotlib.use("Agg")

import sklabel  # noqa: E402

# an example whose training collapses must fail the build
warnings.filterwarnings("error", category=sklabel.CollapseWarning)

project = "sklabel"
author = "sklabel developers"
copyright = author
version = release = sklabel.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "numpydoc",
    "shared_parameters",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_extensions", "examples"]
default_role = "literal"

# -- docstrings

autosummary_generate = True
autodoc_inherit_docstrings = False
# the template lists the methods; numpydoc would list nn.Module's too
numpydoc_show_class_members = False
numpydoc_attributes_as_param_list = True
# "fit()" at the side of a page, not "FixMatchClassifier.fit()", which is cut off
toc_object_entries_show_parents = "hide"

# -- gallery

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "auto_examples",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sklabel",),
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "write_computation_times": False,
    "show_memory": False,
    "remove_config_comments": True,
}

# -- pages

html_theme = "pydata_sphinx_theme"
html_title = f"sklabel {version}"
html_static_path = ["_static"]
html_css_files = ["sklabel.css"]
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_show_sourcelink = False


def _skip_foreign(app, what, name, obj, skip, options):
    """Leave out methods that scikit-learn or torch wrote: they document them."""
    written_in = getattr(getattr(obj, "fget", obj), "__module__", None)
    if what == "class" and written_in and not written_in.startswith("sklabel"):
        return True
    return None


def setup(app):
    """Connect what Sphinx calls while it reads the docstrings."""
    app.connect("autodoc-skip-member", _skip_foreign)
