from django.urls import path

from . import views

urlpatterns = [
    path("add/<name>/", views.add),
    path("meet/<name>/<other>/", views.meet),
    path("api/", views.Api.as_view()),
    *(
        path(f"{view.__name__}/", view, name=view.__name__)
        for view in (
            views.plain,
            views.twice,
            views.tasks,
            views.leave,
            views.fail,
            views.mistake,
            views.missing,
            views.later,
            views.page,
            views.enter,
            views.who,
            views.stream,
            views.plain_stream,
            views.endless,
            views.lasting,
            views.language,
            views.form,
            views.where,
            views.sleep,
            views.in_block,
        )
    ),
]
